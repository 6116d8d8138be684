//! A model that says what a test tells it to: an API, a client and a network as ever, and a server whose answers make the
//! client choose the tokens of a script, one after another. The embeddings are made for that: each token's is nearer to
//! itself than to any other, and the head is the embeddings.

use std::{
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use sepal_protocol::{
    Message,
    compress::Compression,
    names, proto,
    tensor::{DType, WireTensor},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    api::limits,
    asking::Asker,
    generating::client,
    setup::{Node, Swarm, vectors_folder},
    spoiling::{FIRST, announce},
};
use crate::{
    client::{ChatTemplate, Conversations, Limits, TextCodec},
    http::{self, Api, ApiLimits, Guard, ModelText, ServedModel},
    model::{ChatFiles, HubOptions, ModelSource},
    p2p::{Handler, HandlerError, HandlerLimits, StreamReceiver, StreamSender},
    swarm::announce::Announcer,
};

const WIDTH: usize = 128;
/// Those of the built-in model, and the tags of tool calls.
const N_TOKENS: usize = 528;
const N_BLOCKS: u32 = 8;
const END: u32 = 2;
/// Tags that tokenizers have a token for, and whether it is a special one there, which no text shows.
const TAGS: [(&str, bool); 8] = [
    ("[TOOL_CALLS]", true),
    ("[ARGS]", true),
    ("[CALL_ID]", true),
    ("<|python_tag|>", true),
    ("<|eom_id|>", true),
    ("<tool_call>", false),
    ("</tool_call>", false),
    ("<|im_end|>", true),
];

/// What the model says next, and what it was told last.
#[derive(Debug, Default)]
struct Script {
    says: Vec<u32>,
    heard: Vec<u32>,
}

/// An API of a model with this script.
pub(super) struct Stage {
    pub(super) asker: Asker,
    codec: TextCodec,
    script: Arc<Mutex<Script>>,
    _folder: TempDir,
    _swarm: Swarm,
    _nodes: [Node; 2],
    _announcer: Announcer,
}

impl Stage {
    /// A model with the chat template of this fixture.
    pub(super) async fn of(template: &str) -> Self {
        let path = format!("{}/{template}.jinja", vectors_folder("sepal/chat"));
        Self::with(&fs::read_to_string(path).unwrap()).await
    }

    pub(super) async fn with(template: &str) -> Self {
        let folder = model_folder();
        let mut swarm = Swarm::start().await;
        let path = folder.path().to_str().unwrap();
        swarm.source = ModelSource::resolve(path, &HubOptions::from_variables(|_| None)).unwrap();
        let script = Arc::new(Mutex::new(Script::default()));
        let server = swarm.node().await;
        let told = script.clone();
        let handler = Handler::stream(
            names::INFERENCE,
            HandlerLimits::default(),
            move |_, requests, replies| play(told.clone(), requests, replies),
        );
        server.join(vec![handler]).await;
        let announcer = announce(&server, 0..N_BLOCKS, N_BLOCKS, FIRST).await;

        let (node, client) = client(&swarm).await;
        // Each request begins a session of its own, so that the script begins with it.
        let none = Limits {
            max_idle: 0,
            max_idle_time: Duration::from_secs(1),
        };
        let conversations = Conversations::new(client, none, &node.tasks);
        let codec = TextCodec::from_json(&swarm.source.tokenizer_json().unwrap()).unwrap();
        let files = ChatFiles {
            templates: vec![("default".to_owned(), template.to_owned())],
            ..swarm.source.chat_files().unwrap()
        };
        let text = ModelText {
            codec: codec.clone(),
            template: Some(ChatTemplate::new(files).unwrap()),
        };
        let model = ServedModel::new("demo".to_owned(), &swarm.source, text, conversations, None);
        let (listener, site) = http::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let limits = ApiLimits {
            default_max_tokens: 512,
            ..limits()
        };
        http::serve_api(listener, Api::new(vec![model], limits, Guard::default(), &node.tasks));
        Self {
            asker: Asker::new(site.addr),
            codec,
            script,
            _folder: folder,
            _swarm: swarm,
            _nodes: [server, node],
            _announcer: announcer,
        }
    }

    /// What every answer is from now on.
    pub(super) fn says(&self, text: &str) {
        self.script.lock().unwrap().says = self.codec.encode_rendered(text).unwrap();
    }

    /// The prompt of the last answer, without its special tokens.
    pub(super) fn heard(&self) -> String {
        self.codec.decode(&self.script.lock().unwrap().heard).unwrap()
    }
}

/// Answers the steps of one session: those of several tokens at its beginning are the prompt.
async fn play(
    script: Arc<Mutex<Script>>,
    mut requests: StreamReceiver,
    mut replies: StreamSender,
) -> Result<(), HandlerError> {
    let (mut n_steps, mut at) = (0, 0);
    while let Ok(Some(request)) = requests.recv().await {
        if request.is_empty() {
            break;
        }
        let request = proto::ExpertRequest::decode(request).unwrap();
        let x = WireTensor::decode(&request.tensors[0]).unwrap();
        let token = {
            let mut script = script.lock().unwrap();
            let tokens = x.shape[1];
            if n_steps == 0 {
                script.heard.clear();
            }
            if n_steps == 0 || tokens > 1 {
                script.heard.extend(x.to_f32_vec().chunks_exact(WIDTH).map(nearest));
                at = 0;
            } else {
                at += 1;
            }
            script.says.get(at).copied().unwrap_or(END)
        };
        // Two answers in a row are never the same, also for the same token. The norm takes that out again.
        let scale = 1.0 + n_steps as f32 / 1024.0;
        let row = (0..WIDTH).map(|i| scale * embedding(token, i));
        let rows: Vec<f32> = row.cycle().take(x.n_items()).collect();
        n_steps += 1;
        let answer = WireTensor::from_f32(&rows, x.shape.clone(), DType::F32).unwrap();
        let answer = proto::ExpertResponse {
            tensors: vec![answer.encode(Compression::None).unwrap()],
            ..proto::ExpertResponse::default()
        };
        if replies.send(answer.encode_to_vec().into()).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// 1 or -1, as good as by chance.
fn embedding(token: u32, at: usize) -> f32 {
    let mixed = (u64::from(token) * WIDTH as u64 + at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    if mixed >> 63 == 0 { 1.0 } else { -1.0 }
}

/// The token of an embedding.
fn nearest(row: &[f32]) -> u32 {
    let is_it = |token: &u32| {
        row.iter()
            .enumerate()
            .all(|(at, value)| *value == embedding(*token, at))
    };
    (0..N_TOKENS as u32).find(is_it).unwrap()
}

/// The built-in model with more tokens, more context, other embeddings and no blocks.
fn model_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    let mut config: Value = serde_json::from_str(include_str!("../model/demo/config.json")).unwrap();
    config["vocab_size"] = N_TOKENS.into();
    config["max_position_embeddings"] = 8192.into();
    config["torch_dtype"] = "float32".into();
    write("config.json", config.to_string().as_bytes());
    let mut tokenizer: Value = serde_json::from_str(include_str!("../model/demo/tokenizer.json")).unwrap();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    for (id, (content, special)) in (512..).zip(TAGS) {
        added.push(json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": special,
        }));
    }
    write("tokenizer.json", tokenizer.to_string().as_bytes());
    write(
        "tokenizer_config.json",
        include_bytes!("../model/demo/tokenizer_config.json"),
    );
    write(
        "generation_config.json",
        include_bytes!("../model/demo/generation_config.json"),
    );
    let embeddings = (0..N_TOKENS as u32).flat_map(|token| (0..WIDTH).map(move |at| embedding(token, at)));
    let numbers = embeddings.chain([1.0; WIDTH]);
    let data: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
    let end = 4 * N_TOKENS * WIDTH;
    let header = json!({
        "model.embed_tokens.weight": {"dtype": "F32", "shape": [N_TOKENS, WIDTH], "data_offsets": [0, end]},
        "model.norm.weight": {"dtype": "F32", "shape": [WIDTH], "data_offsets": [end, data.len()]},
    });
    let header = header.to_string();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data[..]].concat();
    write("model.safetensors", &file);
    folder
}
