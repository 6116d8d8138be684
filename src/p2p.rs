//! The libp2p host: connections, named streams and the addresses of peers. It knows no tensors and no records.
