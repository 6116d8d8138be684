//! Why an adapter cannot be loaded.

use std::path::PathBuf;

use thiserror::Error;

use crate::model::{CudaError, HubError};

/// An adapter that cannot be used. Each variant names the file or the adapter.
#[derive(Debug, Error)]
pub enum AdapterError {
    /// The hub does not give it.
    #[error("cannot get adapter {name}")]
    Hub {
        /// As it was asked for.
        name: String,
        /// Why.
        #[source]
        source: Box<HubError>,
    },
    /// The operating system refused.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// `adapter_config.json` is not what peft writes.
    #[error("{} is not valid", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The weights are damaged or were cut short.
    #[error("cannot read the weights of adapter {name}")]
    Damaged {
        /// The adapter.
        name: String,
        /// What the safetensors reader says.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// It would change what others compute.
    #[error("adapter {name} comes too late: its blocks are in use")]
    Shared {
        /// The adapter.
        name: String,
    },
    /// An adapter that does what we cannot.
    #[error("adapter {name} {what}, which is not supported")]
    Unsupported {
        /// The adapter.
        name: String,
        /// What it does, to be read after its name.
        what: String,
    },
    /// A module that the block does not have.
    #[error("adapter {name} changes {module}, which block {block} does not have: the adapter is for another model")]
    Foreign {
        /// The adapter.
        name: String,
        /// The module, by its path in the block.
        module: String,
        /// The number of the block.
        block: u32,
    },
    /// No update of a projection of any block of the model, of those that its configuration names.
    #[error("adapter {name} changes no block of the model: its file has nothing for one that its target_modules name")]
    Idle {
        /// The adapter.
        name: String,
    },
    /// A matrix of another shape than the block's projection asks for.
    #[error("tensor {tensor} of adapter {name} has shape {found:?}: the adapter is for another model")]
    Shape {
        /// The adapter.
        name: String,
        /// The tensor.
        tensor: String,
        /// What the file has.
        found: Vec<usize>,
    },
    /// One of the two matrices of an update.
    #[error("adapter {name} has no tensor {tensor}")]
    Incomplete {
        /// The adapter.
        name: String,
        /// The tensor.
        tensor: String,
    },
    /// A card has no memory for it.
    #[error("an adapter cannot be brought to a card")]
    Card(#[source] CudaError),
    /// Two adapters of one name.
    #[error("there are two adapters called {name}")]
    Twice {
        /// The name.
        name: String,
    },
}
