//! Hivemind's distributed hash table: records by key, without addresses. It does not know what a block is.
