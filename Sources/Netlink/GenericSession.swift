// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
public import SystemDescriptors

/// Generic netlink: a family found by name, and its commands (`<linux/genetlink.h>`).
public final class GenericSession {
    private let session: NetlinkSession
    private let family: UInt16
    private let version: UInt8

    /// Finds the family; the kernel loads its module when it may.
    public init(_ name: String, version: UInt8 = 1, socket: SharedDescriptor? = nil) throws(NetlinkError) {
        if let socket {
            session = NetlinkSession(socket)
        } else {
            session = try NetlinkSession(.generic)
        }
        self.version = version
        var payload = NetlinkPayload(genlmsghdr(cmd: UInt8(CTRL_CMD_GETFAMILY), version: 1, reserved: 0))
        payload.attribute(CTRL_ATTR_FAMILY_NAME, text: name)
        let answers: [NetlinkMessage]
        do {
            answers = try session.request("find family \(name)", type: GENL_ID_CTRL, dump: false, payload)
        } catch {
            if error.errno == ENOENT { throw .noFamily(name) }
            throw error
        }
        let identifiers = answers.compactMap { answer -> UInt16? in
            guard let (_, attributes) = answer.parse(genlmsghdr.self) else { return nil }
            return attributes.first { $0.type == Int(CTRL_ATTR_FAMILY_ID) }?.integer()
        }
        guard let identifier = identifiers.first else { throw .noFamily(name) }
        family = identifier
    }

    /// Sends a command that is acknowledged.
    public func acknowledge(
        _ operation: String, command: some BinaryInteger, _ build: (inout NetlinkPayload) -> Void
    ) throws(NetlinkError) {
        try session.acknowledge(operation, type: family, payload(command, build))
    }

    /// Sends a command and returns the attributes of each message of the answer. `hiding`: an attribute that is a secret.
    public func dump(
        _ operation: String, command: some BinaryInteger, hiding: HiddenAttribute? = nil,
        _ build: (inout NetlinkPayload) -> Void
    ) throws(NetlinkError) -> [NetlinkAttributes] {
        try session.request(operation, type: family, dump: true, hiding: hiding, payload(command, build)).compactMap {
            $0.parse(genlmsghdr.self)?.1
        }
    }

    /// An attribute of this family's messages that holds a secret.
    public static func hidden(_ type: some BinaryInteger) -> HiddenAttribute {
        HiddenAttribute(Int(type), headerSize: MemoryLayout<genlmsghdr>.size)
    }

    private func payload(_ command: some BinaryInteger, _ build: (inout NetlinkPayload) -> Void) -> NetlinkPayload {
        var payload = NetlinkPayload(genlmsghdr(cmd: UInt8(command), version: version, reserved: 0))
        build(&payload)
        return payload
    }
}
