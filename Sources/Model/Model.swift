// SPDX-License-Identifier: Apache-2.0

/// Addresses and keys stand below the model, so that WireGuard and Netlink do without the rest.
@_exported public import Addresses
