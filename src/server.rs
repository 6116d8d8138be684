//! Serves a span of blocks to the swarm.
