// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Model
import SystemDescriptors
import Testing

/// What an agent makes of another version's maps.
@Suite("Programs: taking over", .serialized)
struct TakeoverTests {
    private func withLayout(_ body: (PinLayout, _ other: String) throws -> Void) throws {
        let layout = PinLayout(root: "/sys/fs/bpf/wgplane-layout-\(processIdentifier())")
        defer { try? layout.remove() }
        try layout.create()
        let other = "\(layout.root)/v\(PinLayout.version + 1)"
        try makeOwnFolders("\(other)/links")
        try body(layout, other)
    }

    private func map(_ name: String, _ layout: PinLayout) throws -> UInt32 {
        try #require(try NodeMaps(layout).list().first { $0.name == name }).information.identifier
    }

    @Test("maps that all versions share go over as they are, but not of other sizes; the others are made anew")
    func shared() throws {
        try withLayout { layout, other in
            _ = try DataplanePrograms(layout)
            let names = ["masquerade4", "masquerade6", "flows4", "config"]
            let before = try names.map { try map($0, layout) }
            // One that another version had with other sizes.
            try removeFile(layout.map("masquerade4"))
            try renameFile(layout.map("flows4"), layout.map("masquerade4"))
            for entry in try listFolder(layout.folder) where !entry.isFolder {
                try renameFile(layout.map(entry.name), "\(other)/\(entry.name)")
            }
            layout.shareMaps()
            _ = try DataplanePrograms(layout)
            let after = try names.map { try map($0, layout) }
            #expect(after[1] == before[1])
            #expect(!before.contains(after[0]) && !before.contains(after[2]) && !before.contains(after[3]))
            // An agent that starts again finds its own.
            layout.shareMaps()
            #expect(try names.map { try map($0, layout) } == after)
            try layout.removeOtherVersions()
            #expect(layout.presentVersions == [PinLayout.version])
        }
    }
}
