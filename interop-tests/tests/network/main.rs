//! Nodes in networks as people have them, made of namespaces of this machine: one program, because it links quicker.

#[cfg(test)]
mod jobs;
mod lan;
#[cfg(test)]
mod lines;
#[cfg(test)]
mod punching;
#[cfg(test)]
mod relayed;
#[cfg(test)]
mod routers;
