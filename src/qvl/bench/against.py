"""The sides of a benchmark: qvl, and the peer that `--against` names, each with what it has to be given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from qvl.bench.side import Spec
from qvl.errors import DeviceError, QvlError, UsageError, suggest
from qvl.profile import Profile

PeerName = Literal["transformers", "llama.cpp", "openvino"]

# Not by -m, which would look for modules in the working directory first.
_OWN = "import sys; sys.path = [p for p in sys.path if p]; from qvl.bench.own import main; main()"
_SCRIPTS: Mapping[PeerName, str] = {
    "transformers": "peer_transformers.py",
    "llama.cpp": "peer_llama_cpp.py",
    "openvino": "peer_openvino.py",
}
# What pip calls what each needs.
_NEEDS: Mapping[PeerName, str] = {
    "transformers": "transformers torch pillow",
    "llama.cpp": "llama-cpp-python",
    "openvino": "openvino-genai pillow",
}


@dataclass(frozen=True)
class Peer:
    """Which peer runs, and with what. python: None: this one. model, mmproj: files of its own, if it takes no other."""

    name: PeerName
    python: str | None = None
    model: str | None = None
    mmproj: str | None = None


@dataclass(frozen=True)
class Placed:
    """Where and how qvl runs the model, for a peer to do the same. room: tokens that the longest run needs."""

    folder: Path
    device: str
    dtype: str
    room: int


def own(profile: Profile, adapters: list[str], threads: int | None, *, check_memory: bool) -> Spec:
    """qvl's side."""
    load = {"profile": asdict(profile), "adapters": adapters, "check_memory": check_memory}
    return Spec("qvl", [sys.executable, "-c", _OWN], hello={"threads": threads}, load=load)


def checked(name: str, python: str | None, model: str | None, mmproj: str | None, *, picture: bool) -> Peer:
    """The peer as asked for. Raises UsageError for another name, and for a file that it needs and is not given."""
    known = get_args(PeerName)
    if name not in known:
        raise UsageError(f"--against {name} is not known; {', '.join(known[:-1])} or {known[-1]}{suggest(name, known)}")
    peer: PeerName = name  # type: ignore[assignment]
    if peer == "transformers":
        for option, given in (("--peer-model", model), ("--peer-mmproj", mmproj)):
            if given is not None:
                raise UsageError(f"{option} is for other peers: transformers reads the folder that qvl reads")
        return Peer(peer, python)
    kind = "FILE.gguf" if peer == "llama.cpp" else "DIR"
    if model is None:
        raise UsageError(f"--against {peer} needs --peer-model {kind}: the same model in the peer's own form")
    there = Path(model).expanduser()
    if not (there.is_file() if peer == "llama.cpp" else there.is_dir()):
        raise UsageError(f"--peer-model {model}: no such {'file' if peer == 'llama.cpp' else 'folder'}")
    if peer == "openvino":
        if mmproj is not None:
            raise UsageError("--peer-mmproj is for llama.cpp")
        return Peer(peer, python, str(there))
    if picture and mmproj is None:
        raise UsageError("--against llama.cpp needs --peer-mmproj FILE.gguf for the picture, or --picture none")
    if mmproj is not None and not Path(mmproj).expanduser().is_file():
        raise UsageError(f"--peer-mmproj {mmproj}: no such file")
    return Peer(peer, python, str(there), str(Path(mmproj).expanduser()) if mmproj is not None else None)


def spec(peer: Peer, placed: Placed, profile: Profile, threads: int) -> Spec:
    """The peer's side."""
    python = str(Path(peer.python).expanduser()) if peer.python is not None else sys.executable
    script = Path(__file__).parent / "peers" / _SCRIPTS[peer.name]
    count = str(threads)
    return Spec(
        peer.name,
        [python, str(script)],
        hello={"threads": threads},
        load=_load(peer, placed, profile),
        environment={"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONUTF8": "1"},
        lacking=_lacking(peer.name, python),
    )


def _load(peer: Peer, placed: Placed, profile: Profile) -> dict[str, Any]:
    gpu = placed.device.startswith("gpu")
    if peer.name == "llama.cpp":
        return {"model": peer.model, "mmproj": peer.mmproj, "room": placed.room, "gpu": gpu}
    if peer.name == "openvino":
        return {"model": peer.model, "gpu": gpu}
    return {
        "folder": str(placed.folder.resolve()),
        "dtype": placed.dtype,
        "device": placed.device,
        "min_pixels": profile.min_pixels,
        "max_pixels": profile.max_pixels,
    }


def _lacking(name: PeerName, python: str) -> Callable[[str], QvlError]:
    def error(text: str) -> QvlError:
        return DeviceError(
            f"--against {name}: {python} cannot run it ({text}); pip install {_NEEDS[name]} there, "
            "or name a Python that has it with --peer-python"
        )

    return error
