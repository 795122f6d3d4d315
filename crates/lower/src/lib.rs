//! GGUF architectures to ML Programs: blocks, quantisation, topology, and the bundle builder.
