"""Makes PyPI's torch wheel importable without the CUDA libraries it is linked against (2 GB that a CPU test never calls).

The only x86-64 Linux wheel of torch on PyPI is the CUDA build. It needs its libraries to be present when it is loaded,
not to work: this puts shared libraries of the same names beside torch's own, whose functions all abort. It is not an
emulation of anything; `torch.cuda.is_available()` is false, as on any machine without a GPU.

Usage: python cpu_torch.py   (with the environment's python, once, after torch was installed with --no-deps)
"""

import collections
import pathlib
import re
import subprocess
import sysconfig
import tempfile

# What torch 2.3.1 names as needed, and the prefix of the functions it takes from each.
STUBBED = {
    "libcublas.so.12": r"cublas(?!Lt)",
    "libcublasLt.so.12": r"cublasLt",
    "libcudnn.so.8": r"cudnn",
    "libcufft.so.11": r"cufft",
    "libcupti.so.12": r"cupti",
    "libcurand.so.10": r"curand",
    "libcusparse.so.12": r"cusparse(?!Lt)",
    "libnccl.so.2": r"(p?nccl)",
}


def undefined_functions(folder: pathlib.Path) -> dict[str, set[str]]:
    """The functions that torch's libraries expect from each stubbed library."""
    wanted = collections.defaultdict(set)
    for library in folder.glob("libtorch*.so"):
        listing = subprocess.run(["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True)
        for line in listing.stdout.splitlines():
            name, _, version = line.split()[-1].partition("@")
            for stub, prefix in STUBBED.items():
                if version == stub or (not version and re.match(prefix, name)):
                    wanted[stub].add(name)
    return wanted


def build(stub: str, functions: set[str], folder: pathlib.Path) -> None:
    """Links one library whose functions abort, with the version name that the loader checks."""
    with tempfile.TemporaryDirectory() as scratch:
        source = pathlib.Path(scratch, "stub.c")
        source.write_text("".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in sorted(functions)))
        versions = pathlib.Path(scratch, "stub.map")
        versions.write_text(f"{stub} {{ global: *; }};\n")
        link = ["cc", "-shared", "-fPIC", "-w", "-nostdlib", f"-Wl,-soname,{stub}", f"-Wl,--version-script={versions}"]
        subprocess.run([*link, "-o", folder / stub, source], check=True)


def main() -> None:
    folder = pathlib.Path(sysconfig.get_paths()["purelib"], "torch", "lib")
    wanted = undefined_functions(folder)
    for stub in STUBBED:
        build(stub, wanted[stub], folder)
        print(f"{stub}: {len(wanted[stub])} functions")


if __name__ == "__main__":
    main()
