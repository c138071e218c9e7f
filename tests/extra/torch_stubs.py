"""Stand-ins for the CUDA libraries that PyPI's torch is linked against, so that it imports without them.

Usage: torch_stubs.py FOLDER, then put FOLDER into LD_LIBRARY_PATH

The wheel's own dependencies are some 2 GB, of which a CPU needs nothing. Of each library that cannot be found, this
makes one with the same name, symbols and versions; whoever calls into it is stopped. A torch built for the CPU needs
no stand-in and gets none.
"""

import ctypes
import importlib.util
import pathlib
import re
import subprocess
import sys

# The driver is looked for at run time; that it is not there is an answer.
DRIVER = {"libcuda.so.1"}
REFUSE = "#include <stdlib.h>\nvoid mantissa_refuse(void) { abort(); }\n"


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def readelf(option, library):
    return run("readelf", "-W", option, str(library))


def needed(libraries):
    """The names of all libraries that these are linked against."""
    return {name for lib in libraries for name in re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d", lib))}


def imports(libraries):
    """The undefined symbols, as (name, version), where an empty version stands for none."""
    row = re.compile(r"\bUND (\w+)(?:@(\S+))?", re.ASCII)
    return {(s, v) for lib in libraries for s, v in row.findall(readelf("--dyn-syms", lib))}


def versions(libraries):
    """For each library that these are linked against, the symbol versions that it must have."""
    out = {}
    for lib in libraries:
        name = None
        for kind, word in re.findall(r"\b(File|Name): (\S+)", readelf("-V", lib)):
            if kind == "File":
                name = word
            elif name:
                out.setdefault(name, set()).add(word)
    return out


def loads(name):
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def make(folder, name, symbols, version):
    """Compiles a library whose symbols all refuse to be called."""
    source = REFUSE + "".join(f'void {s}(void) __attribute__((alias("mantissa_refuse")));\n' for s in sorted(symbols))
    (folder / "stub.c").write_text(source)
    script = []
    if version:
        (folder / "stub.map").write_text(f"{version} {{ global: *; }};\n")
        script = [f"-Wl,--version-script={folder}/stub.map"]
    quiet = ["-w", "-fno-builtin", "-shared", "-fPIC"]
    run("cc", *quiet, str(folder / "stub.c"), "-o", str(folder / name), f"-Wl,-soname,{name}", *script)


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch = pathlib.Path(importlib.util.find_spec("torch").origin).parent
    libraries = sorted((torch / "lib").glob("*.so"))
    packaged = {p.name for p in torch.parent.glob("nvidia/**/lib*.so.*")} | {p.name for p in (torch / "lib").iterdir()}
    missing = sorted(name for name in needed(libraries) - packaged - DRIVER if not loads(name))
    by_library, symbols = versions(libraries), imports(libraries)
    for name in missing:
        # NVIDIA gives each library one version or none; symbols without one may come from any of those.
        version = next(iter(by_library.get(name, [])), "")
        prefix = re.match(r"lib([a-z]+)", name.lower())[1]
        make(folder, name, {s for s, v in symbols if v == version and (v or s.lower().startswith(prefix))}, version)
    print(f"{len(missing)} stand-ins for torch's CUDA libraries")


if __name__ == "__main__":
    main()
