// SPDX-License-Identifier: Apache-2.0

import Foundation
import FuzzTargets

// libFuzzer's entry: see scripts/fuzz.sh. Its own main calls this.
private let target: FuzzTarget = {
    let name = ProcessInfo.processInfo.environment["WGPLANE_FUZZ_TARGET"] ?? ""
    guard let target = FuzzTarget.all.first(where: { $0.name == name }) else {
        let names = FuzzTarget.all.map(\.name).joined(separator: " ")
        FileHandle.standardError.write(Data("WGPLANE_FUZZ_TARGET=\"\(name)\" is none of \(names)\n".utf8))
        exit(2)
    }
    return target
}()

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzOne(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> Int32 {
    target.run(Array(UnsafeBufferPointer(start: bytes, count: count)))
    return 0
}
