// SPDX-License-Identifier: Apache-2.0

public import Datastore
internal import Foundation
internal import Model
internal import SystemDescriptors

/// Which etcd cluster, and as whom.
public struct EtcdAccess: Sendable {
    public struct Endpoint: Sendable, Hashable, CustomStringConvertible {
        public var host: String
        public var port: Int
        public var isEncrypted: Bool

        public var description: String {
            "\(isEncrypted ? "https" : "http")://\(host.contains(":") ? "[\(host)]" : host):\(port)"
        }

        public init(host: String, port: Int, isEncrypted: Bool) {
            self.host = host
            self.port = port
            self.isEncrypted = isEncrypted
        }

        /// Reads `https://10.0.0.1:2379`, `http://…`, or `10.0.0.1:2379`, of which TLS is used when there are
        /// authorities.
        init?(_ text: Substring, defaultEncrypted: Bool) {
            var rest = text
            isEncrypted = defaultEncrypted
            if rest.hasPrefix("https://") {
                isEncrypted = true
                rest = rest.dropFirst(8)
            } else if rest.hasPrefix("http://") {
                isEncrypted = false
                rest = rest.dropFirst(7)
            }
            if rest.hasPrefix("[") {
                guard let end = rest.firstIndex(of: "]") else { return nil }
                host = String(rest[rest.index(after: rest.startIndex)..<end])
                rest = rest[rest.index(after: end)...]
            } else {
                let end = rest.firstIndex(of: ":") ?? rest.endIndex
                host = String(rest[..<end])
                rest = rest[end...]
            }
            if rest.isEmpty {
                port = 2379
            } else {
                guard rest.first == ":", let number = UInt16(rest.dropFirst()), number != 0 else { return nil }
                port = Int(number)
            }
            guard !host.isEmpty, !host.contains("/") else { return nil }
        }
    }

    public var endpoints: [Endpoint]
    /// PEM files.
    public var authorities: String?
    public var certificate: String?
    public var key: String?
    public var user: String?
    public var password: String?

    public init(endpoints: [Endpoint]) { self.endpoints = endpoints }

    /// See `Datastore.exposure`.
    var exposure: String? {
        guard let plain = endpoints.first(where: { !$0.isEncrypted }) else { return nil }
        return "\(plain) is spoken to without TLS\(password == nil ? "" : ", the password too")"
    }

    /// `hosts`: endpoints with commas between. Files and user come from the variables that Calico has for etcd:
    /// `ETCD_CA_CERT_FILE`, `ETCD_CERT_FILE`, `ETCD_KEY_FILE`, `ETCD_USERNAME`, `ETCD_PASSWORD`, and
    /// `ETCD_PASSWORD_FILE` beside them.
    public init(hosts: String, environment: [String: String]) throws(DatastoreError) {
        func value(_ name: String) -> String? { environment[name].flatMap { $0.isEmpty ? nil : $0 } }
        authorities = value("ETCD_CA_CERT_FILE")
        certificate = value("ETCD_CERT_FILE")
        key = value("ETCD_KEY_FILE")
        user = value("ETCD_USERNAME")
        password = value("ETCD_PASSWORD")
        endpoints = []
        for text in hosts.split(separator: ",") {
            guard let endpoint = Endpoint(text, defaultEncrypted: authorities != nil) else {
                throw DatastoreError(
                    location: "etcd:\(hosts)", message: "\"\(text)\" is no endpoint",
                    remedy: "write it like https://10.0.0.1:2379, more with commas between")
            }
            endpoints.append(endpoint)
        }
        guard !endpoints.isEmpty else {
            throw DatastoreError(
                location: "etcd:", message: "names no endpoint", remedy: "write it like etcd:https://10.0.0.1:2379")
        }
        if let file = value("ETCD_PASSWORD_FILE") {
            do {
                let text = String(decoding: try readFile(file, limit: 4096), as: UTF8.self)
                password = text.trimmingCharacters(in: .whitespacesAndNewlines)
            } catch {
                throw DatastoreError(
                    location: "etcd:\(hosts)", message: "ETCD_PASSWORD_FILE \(file) cannot be read: \(error)",
                    remedy: "check the file and its rights")
            }
        }
        if (certificate == nil) != (key == nil) {
            throw DatastoreError(
                location: "etcd:\(hosts)", message: "has only one of ETCD_CERT_FILE and ETCD_KEY_FILE",
                remedy: "set both, or neither")
        }
    }
}
