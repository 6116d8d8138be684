//! One network namespace, and the commands that are run in it.

use std::{
    ffi::OsStr,
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

use crate::process;

/// A network namespace that lives as long as this value, or its test process.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one of a name that nobody else has.
    ///
    /// # Errors
    ///
    /// If it cannot be made: who is not root, or is in a container without rights, cannot.
    pub(crate) fn new(name: String) -> anyhow::Result<Self> {
        // One of an earlier process with our number, killed together with whoever should have cleaned up.
        let leftover = Command::new("ip").args(["netns", "del", &name]).output();
        drop(leftover);
        process::end_namespace_with_this_process(&name)?;
        run("ip", &["netns", "add", &name], "")
            .context("network tests make namespaces: run them as root, outside of containers without that right")?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` knows it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A program that is to run in here.
    pub(crate) fn command(&self, program: &OsStr) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// `ip` with these arguments.
    ///
    /// # Errors
    ///
    /// If it fails, with what it said.
    pub(crate) fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        run("ip", &[&["-n", self.name.as_str()], arguments].concat(), "").map(drop)
    }

    /// Lets packets through from one device to another.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub(crate) fn forward_packets(&self) -> anyhow::Result<()> {
        let set = "echo 1 >/proc/sys/net/ipv4/ip_forward";
        run("ip", &["netns", "exec", &self.name, "sh", "-c", set], "").map(drop)
    }

    /// `nft` with these arguments and this script; what it prints.
    ///
    /// # Errors
    ///
    /// If it fails, with what it said.
    pub(crate) fn nft(&self, arguments: &[&str], script: &str) -> anyhow::Result<String> {
        run(
            "ip",
            &[&["netns", "exec", &self.name, "nft"], arguments].concat(),
            script,
        )
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Whoever still runs in it keeps it until he ends; without the name nobody else enters.
        drop(run("ip", &["netns", "del", &self.name], ""));
    }
}

/// Runs a program to its end with `input` as standard input; what it prints.
fn run(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}: network tests need the packages iproute2 and nftables"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // Who fails before reading says so below.
        drop(stdin.write_all(input.as_bytes()));
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
