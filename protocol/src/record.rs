//! What Petals puts into the DHT and into the answer of `rpc_info`: servers, models, and the names of blocks.

mod block_uid;
mod map_monitor;
mod model_info;
mod rpc_info;
mod seal;
mod server_info;

pub use block_uid::BlockUid;
pub use model_info::{MODEL_REGISTRY_KEY, ModelInfo};
pub use rpc_info::{BlockSchema, RpcInfo};
pub use seal::Seal;
pub use server_info::{ServerInfo, ServerState};
