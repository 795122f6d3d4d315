//! What every part of the system must agree on: the contract, the manifest, the bundle's layout.
