"""What `adapter_config.json` of Hugging Face PEFT says, and how an adapter is asked for. Neither NumPy nor Paddle."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvl.errors import CheckpointError, UsageError

CONFIG_FILE = "adapter_config.json"

# Keys that change nothing about how finished factors are used: how they came about, or where.
_HARMLESS = frozenset(
    (
        "peft_type",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "auto_mapping",
        "peft_version",
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "use_rslora",
        "bias",
        "rank_pattern",
        "alpha_pattern",
        "init_lora_weights",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "runtime_config",
        "megatron_core",
        "qalora_group_size",
        "lora_dtype",
        "lorap_lr_ratio",
        "lorap_emb_lr",
    )
)
# Ways to start that also rewrite the base; factors trained so are right beside that base only.
_REWRITE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterRequest:
    """An adapter as it is asked for. `scale` multiplies what it adds."""

    name: str
    folder: Path
    scale: float = 1.0

    @staticmethod
    def parse(text: str) -> AdapterRequest:
        """Read "DIR", "name=DIR" or "name=DIR:scale"; a name that is left out is the folder's. Raises UsageError."""
        if text and Path(text).expanduser().is_dir():
            return AdapterRequest(Path(text).expanduser().resolve().name, Path(text).expanduser())
        name, equals, rest = text.partition("=")
        folder = rest if equals else name
        scale = 1.0
        number = re.fullmatch(r"(.+):([-+.\w]+)", folder)
        if number and not Path(folder).expanduser().is_dir():
            try:
                scale = float(number[2])
            except ValueError:
                raise UsageError(
                    f"adapter {text!r}: {number[2]!r} is not a scale; name=DIR:scale is the form"
                ) from None
            folder = number[1]
        if not folder or (equals and not name) or not math.isfinite(scale):
            raise UsageError(f"adapter {text!r}: DIR, name=DIR or name=DIR:scale was expected")
        path = Path(folder).expanduser()
        return AdapterRequest(name if equals else path.resolve().name, path, scale)


@dataclass(frozen=True)
class AdapterConfig:
    """What `adapter_config.json` says. target_modules: endings or whole paths of modules, or one regular expression."""

    rank: int
    alpha: float
    dropout: float = 0.0
    rslora: bool = False
    target_modules: tuple[str, ...] | str = ()
    base_model: str | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    is_selective: bool = False  # further keys say which of the modules named are meant

    @staticmethod
    def from_folder(folder: Path) -> AdapterConfig:
        """Raises CheckpointError for a missing or damaged file, and naming the key for a kind qvl does not run."""
        path = folder / CONFIG_FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{folder}: no {CONFIG_FILE} there, so this is not an adapter folder") from None
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
        if not isinstance(data, dict):
            raise CheckpointError(f"{path}: a JSON object was expected")
        _refuse_unsupported(data, path)
        try:
            targets = data.get("target_modules") or ()
            config = AdapterConfig(
                rank=int(data["r"]),
                alpha=float(data["lora_alpha"]),
                dropout=float(data.get("lora_dropout") or 0.0),
                rslora=bool(data.get("use_rslora")),
                target_modules=targets if isinstance(targets, str) else tuple(str(target) for target in targets),
                base_model=data.get("base_model_name_or_path"),
                rank_pattern={str(k): int(v) for k, v in (data.get("rank_pattern") or {}).items()},
                alpha_pattern={str(k): float(v) for k, v in (data.get("alpha_pattern") or {}).items()},
                is_selective=any(data.get(key) for key in ("exclude_modules", "layers_to_transform", "layers_pattern")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path}: r, lora_alpha or another number is missing or wrong ({error!r})") from None
        if config.rank < 1 or any(rank < 1 for rank in config.rank_pattern.values()):
            raise CheckpointError(f"{path}: a rank has to be 1 or more")
        _check_patterns(config, path)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The file as PEFT reads it."""
        targets = self.target_modules
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model,
            "r": self.rank,
            "lora_alpha": int(self.alpha) if self.alpha == int(self.alpha) else self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "target_modules": targets if isinstance(targets, str) else list(targets),
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "modules_to_save": None,
            "use_dora": False,
        }

    def rank_of(self, module: str) -> int:
        """Rank of a module, under the name that the adapter's files give it."""
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What the product of the factors is multiplied by."""
        rank = self.rank_of(module)
        return _by_pattern(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether PEFT would adapt a module of that name."""
        if isinstance(self.target_modules, str):
            return re.fullmatch(self.target_modules, module) is not None
        return any(module == target or module.endswith(f".{target}") for target in self.target_modules)


def _by_pattern(pattern: Mapping[str, float], module: str, default: float) -> float:
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _check_patterns(config: AdapterConfig, path: Path) -> None:
    whole = {"target_modules": [config.target_modules] if isinstance(config.target_modules, str) else []}
    for key, patterns in (whole | {"rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern}).items():
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise CheckpointError(f"{path}: {key} is not a regular expression ({pattern!r}: {error})") from None


def _refuse_unsupported(data: Mapping[str, Any], path: Path) -> None:
    """An adapter of another kind would load and answer wrongly, so whatever is set and not known is an error."""
    if data.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {data.get('peft_type')!r}; qvl reads LORA")
    if data.get("bias", "none") not in (None, "none"):
        raise CheckpointError(f"{path}: bias is {data['bias']!r}; qvl reads adapters that leave biases alone")
    start = data.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_REWRITE_BASE):
        raise CheckpointError(
            f"{path}: init_lora_weights is {start!r}, which changes the base too; convert it to plain LoRA with PEFT"
        )
    for key, value in data.items():
        if value and key not in (*_HARMLESS, "bias"):
            raise CheckpointError(f"{path}: {key} is set to {value!r}, which qvl does not support")
