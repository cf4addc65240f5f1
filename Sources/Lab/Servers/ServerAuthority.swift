// SPDX-License-Identifier: Apache-2.0

internal import Crypto
internal import Foundation
public import Model
internal import SwiftASN1
internal import SystemDescriptors
internal import X509

/// A certificate authority for the servers of a lab or test, and whom it knows. Good for a day.
public struct ServerAuthority: Sendable {
    /// Where its files are: `ca.crt`, and `NAME.crt`, `NAME.key` and `NAME.pub` of each that it has issued.
    public let folder: String
    private let key = P256.Signing.PrivateKey()
    private let certificate: Certificate
    private static let life = 86_400.0

    /// Makes the folder and `ca.crt` in it.
    public init(folder: String) throws {
        self.folder = folder
        try makeFolders(folder, mode: 0o700)
        let name = try DistinguishedName { CommonName("wgplane lab") }
        certificate = try Self.certificate(
            of: key.publicKey, subject: name, issuer: name, signedBy: key,
            extensions: Certificate.Extensions {
                Critical(BasicConstraints.isCertificateAuthority(maxPathLength: nil))
                Critical(KeyUsage(keyCertSign: true, cRLSign: true))
            })
        try write("ca.crt", try certificate.serializeAsPEM().pemString)
    }

    public var authorityFile: String { "\(folder)/ca.crt" }
    public func certificateFile(_ name: String) -> String { "\(folder)/\(name).crt" }
    public func publicKeyFile(_ name: String) -> String { "\(folder)/\(name).pub" }
    public func keyFile(_ name: String) -> String { "\(folder)/\(name).key" }

    /// Issues a certificate for servers and clients. `groups` are a Kubernetes user's.
    public func issue(
        _ file: String, name: String, groups: [String] = [], hosts: [String] = [], addresses: [IPAddress] = []
    ) throws {
        let own = P256.Signing.PrivateKey()
        let subject = try DistinguishedName {
            for group in groups { OrganizationName(group) }
            CommonName(name)
        }
        let alternatives: [GeneralName] =
            hosts.map { .dnsName($0) }
            + addresses.map { .ipAddress(ASN1OctetString(contentBytes: ArraySlice($0.bytes))) }
        let issued = try Self.certificate(
            of: own.publicKey, subject: subject, issuer: certificate.subject, signedBy: key,
            extensions: Certificate.Extensions {
                Critical(BasicConstraints.notCertificateAuthority)
                Critical(KeyUsage(digitalSignature: true))
                try ExtendedKeyUsage([.serverAuth, .clientAuth])
                if !alternatives.isEmpty { SubjectAlternativeNames(alternatives) }
            })
        try write("\(file).crt", try issued.serializeAsPEM().pemString)
        try write("\(file).key", own.pemRepresentation)
        try write("\(file).pub", own.publicKey.pemRepresentation)
    }

    private func write(_ name: String, _ text: String) throws {
        try replaceFile("\(folder)/\(name)", with: Array((text + "\n").utf8))
    }

    private static func certificate(
        of key: P256.Signing.PublicKey, subject: DistinguishedName, issuer: DistinguishedName,
        signedBy signer: P256.Signing.PrivateKey, extensions: Certificate.Extensions
    ) throws -> Certificate {
        try Certificate(
            version: .v3, serialNumber: .init(), publicKey: .init(key), notValidBefore: .now - 3600,
            notValidAfter: .now + life, issuer: issuer, subject: subject, signatureAlgorithm: .ecdsaWithSHA256,
            extensions: extensions, issuerPrivateKey: .init(signer))
    }
}
