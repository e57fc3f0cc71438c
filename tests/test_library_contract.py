"""What this project uses of libraries beside their public surface, and what it relies on.

After an upgrade this file fails first, in seconds, and says what has changed. Whatever begins with one
underscore is private: a name, an attribute, a module. The code is walked, so that nothing private is used
that is not listed in PRIVATE with its reason, and nothing is listed that is not used.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import accelerate
import deepspeed
import peft
import pytest
import torch
import transformers
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, DeepSpeedConfig
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import distributed, nn
from torch.utils.cpp_extension import get_default_build_root
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from tests.conftest import ROOT
from training.run.deepspeed_config import TOP_LEVEL

OURS = ("training", "inference", "evaluation")

# Documented in spite of the underscore (https://docs.python.org/3/library/collections.html).
NAMED_TUPLE = {"_asdict", "_fields", "_replace", "_make"}

# The classes of libraries whose objects are in the hands of our code, beside the bases of our own classes.
HANDLED = (
    Trainer,
    TrainingArguments,
    transformers.PreTrainedModel,
    transformers.PreTrainedTokenizerFast,
    transformers.GenerationConfig,
    peft.PeftModel,
    TrainableTokensLayer,
    accelerate.Accelerator,
    deepspeed.DeepSpeedEngine,
    nn.Module,
    nn.Parameter,
    torch.optim.Optimizer,
    torch.UntypedStorage,
)


class Private(NamedTuple):
    """name: as the code writes it. holder: the module or class that has it. check: asserts, on the holder or
    on a stand-in for it, what the code relies on."""

    name: str
    holder: str
    reason: str
    check: Callable[[Any], None]


def check_build_directory(cpp_extension: Any) -> None:
    found = Path(cpp_extension._get_build_directory("an_operation_of_nobody", verbose=False))
    assert found.name == "an_operation_of_nobody"
    found.rmdir()  # it makes the directory, too
    assert found.is_relative_to(get_default_build_root())


def check_world(distributed_c10d: Any) -> None:
    assert isinstance(distributed_c10d._world.pg_map, dict)
    assert callable(distributed.ProcessGroup.set_timeout)


def check_deepspeed_reference(integration: Any) -> None:
    class Config:
        def is_zero3(self) -> bool:
            return True

    config = Config()
    integration.unset_hf_deepspeed_config()  # another test may have set one
    assert integration._hf_deepspeed_config_weak_ref is None
    integration.set_hf_deepspeed_config(config)
    try:
        if isinstance(integration, types.ModuleType):
            assert isinstance(integration._hf_deepspeed_config_weak_ref, weakref.ref)
            assert integration._hf_deepspeed_config_weak_ref() is config
            assert peft.utils.integrations.check_deepspeed_zero3_enabled()
    finally:
        integration.unset_hf_deepspeed_config()
    assert not integration.is_deepspeed_zero3_enabled()


def check_fake_tensors(torch_: Any) -> None:
    with torch_._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        tensor = torch.empty(2**60)  # which no memory holds
        assert tensor.untyped_storage() is tensor.view(2, -1).untyped_storage()
        assert tensor.untyped_storage().nbytes() == 4 * 2**60


PRIVATE = [
    Private(
        "_get_build_directory",
        "torch.utils.cpp_extension",
        "where a killed build of DeepSpeed's operation leaves torch's lock; nothing public says it",
        check_build_directory,
    ),
    Private(
        "_world",
        "torch.distributed.distributed_c10d",
        "all process groups, also those that DeepSpeed makes: --ddp-timeout is to hold for each of them",
        check_world,
    ),
    Private(
        "_hf_deepspeed_config_weak_ref",
        "transformers.integrations.deepspeed",
        "the configuration that is set again once peft has made an adapter without seeing ZeRO-3; there is a "
        "public way to set and to unset it, and none to read it",
        check_deepspeed_reference,
    ),
    Private(
        "torch._subclasses",
        "torch",
        "FakeTensorMode: the plan's activations are counted without memory for them; torch documents it "
        "at this place (https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html)",
        check_fake_tensors,
    ),
]


@functools.cache
def names_of_handled() -> set[str]:
    return set().union(*(library_names(class_) for class_ in HANDLED))


class Use(NamedTuple):
    line: int
    name: str


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def sources(root: Path) -> dict[Path, str]:
    return {
        path: path.read_text("utf-8") for package in OURS for path in sorted((root / package).rglob("*.py"))
    }


def own_names(sources: Iterable[str | ast.AST]) -> set[str]:
    """The names that our code defines: functions, classes, variables, and attributes of `self`.

    Its texts are given, or the nodes that they were parsed to.
    """
    found = set()
    for source in sources:
        for node in ast.walk(ast.parse(source) if isinstance(source, str) else source):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                found.add(node.attr)
    return found


def is_self(node: ast.expr) -> bool:
    is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_super or (isinstance(node, ast.Name) and node.id in ("self", "cls"))


def imported_names(tree: ast.Module) -> dict[str, tuple[str, str | None]]:
    """What each name of an import statement stands for: (module, name in it, or None for the module)."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                module = alias.name if alias.asname else alias.name.split(".")[0]
                found[alias.asname or module] = (module, None)
    return found


def is_library(module: str) -> bool:
    root = module.split(".")[0]
    return root not in OURS and root not in sys.stdlib_module_names


def resolve(node: ast.expr, names: dict[str, tuple[str, str | None]]) -> Any:
    """The object that `name` or `name.name` stands for, or None for what is not imported."""
    if isinstance(node, ast.Subscript):
        return resolve(node.value, names)
    if isinstance(node, ast.Attribute):
        return getattr(resolve(node.value, names), node.attr, None)
    if not isinstance(node, ast.Name) or node.id not in names:
        return None
    module, name = names[node.id]
    loaded = importlib.import_module(module)
    if name is None:
        return loaded
    return getattr(loaded, name) if hasattr(loaded, name) else importlib.import_module(f"{module}.{name}")


@functools.cache
def library_names(class_: type) -> set[str]:
    """Attributes of a class, and those that its methods give to `self`, as far as they are a library's."""
    found = set()
    for base in class_.__mro__:
        if is_library(base.__module__):
            found |= vars(base).keys()
            found |= own_names(node for node in classes_of(base.__module__) if node.name == base.__name__)
    return found


@functools.cache
def classes_of(module: str) -> list[ast.ClassDef]:
    """The classes in the text of a module, which has none where it is written in C."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError):
        return []
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def private_uses(text: str, own: set[str]) -> list[Use]:
    """Each use of what is private to a library in the text of a module. own: the names that we define."""
    tree = ast.parse(text)
    names = imported_names(tree)
    handled = names_of_handled()
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    of_bases: dict[str, set[str]] = {}
    inside: dict[ast.AST, set[str]] = {}
    for class_ in classes:
        bases = [resolve(base, names) for base in class_.bases]
        of_bases[class_.name] = set().union(
            *(library_names(base) for base in bases if isinstance(base, type)),
            *(of_bases.get(base.id, set()) for base in class_.bases if isinstance(base, ast.Name)),
        )
        inside |= {node: of_bases[class_.name] for node in ast.walk(class_)}
    in_bodies = names_in_bodies(classes)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and is_library(node.module):
            parts = [part for part in node.module.split(".") if is_private(part)]
            if parts:
                found.append(Use(node.lineno, node.module))
            found += [Use(node.lineno, alias.name) for alias in node.names if is_private(alias.name)]
        elif isinstance(node, ast.Import):
            found += [
                Use(node.lineno, alias.name)
                for alias in node.names
                if is_library(alias.name) and any(map(is_private, alias.name.split(".")))
            ]
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if is_self(node.value):
                is_theirs = node.attr in inside.get(node, set()) or node.attr not in own
            else:
                root = resolve(node.value, names)
                is_stdlib = isinstance(root, types.ModuleType) and not is_library(root.__name__)
                is_theirs = not is_stdlib and (node.attr not in own or node.attr in handled)
            if is_theirs and node.attr not in NAMED_TUPLE:
                found.append(Use(node.lineno, node.attr))
        elif isinstance(node, (ast.FunctionDef, ast.Name)):
            name = node.name if isinstance(node, ast.FunctionDef) else node.id
            is_defined = isinstance(node, ast.FunctionDef) or isinstance(node.ctx, ast.Store)
            if is_defined and is_private(name) and node in in_bodies and name in inside[node]:
                found.append(Use(node.lineno, name))
    return sorted(found)


def names_in_bodies(classes: list[ast.ClassDef]) -> set[ast.AST]:
    """The methods of classes, and the targets of assignments in the classes themselves."""
    found = set()
    for class_ in classes:
        for statement in class_.body:
            found |= {statement, getattr(statement, "target", None), *getattr(statement, "targets", ())}
    return found


@functools.cache
def methods_of_handled() -> set[str]:
    """The methods of objects that we are given by libraries, but those that are settings."""
    return {
        name
        for class_ in HANDLED
        for name in dir(class_)
        if not name.startswith("__") and inspect.isroutine(inspect.getattr_static(class_, name))
    } - {field.name for field in dataclasses.fields(TrainingArguments)}


def replacements(text: str) -> Iterator[Use]:
    """Each assignment to an attribute of a library's module or class, or to a method of its objects."""
    tree = ast.parse(text)
    names = imported_names(tree)
    for node in ast.walk(tree):
        target, attribute = None, None
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
            target, attribute = node.value, node.attr
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("setattr", "delattr")
        ):
            target = node.args[0]
            attribute = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
        if target is None:
            continue
        root = target
        while isinstance(root, ast.Attribute):
            root = root.value
        is_imported = isinstance(root, ast.Name) and root.id in names and is_library(names[root.id][0])
        if is_imported or attribute in methods_of_handled():
            yield Use(node.lineno, ast.unparse(node))


def test_nothing_private_is_used_that_is_not_listed() -> None:
    texts = sources(ROOT)
    own = own_names(list(texts.values()))
    found = {path: private_uses(text, own) for path, text in texts.items()}
    listed = {private.name for private in PRIVATE}
    unlisted = [
        f"{path.relative_to(ROOT)}:{use.line}: {use.name}"
        for path, uses in found.items()
        for use in uses
        if use.name not in listed
    ]
    assert unlisted == []
    used = {use.name for uses in found.values() for use in uses}
    assert listed - used == set(), "no longer used: take it off the list"


def test_no_library_is_patched() -> None:
    for path, text in sources(ROOT).items():
        assert list(replacements(text)) == [], path
        assert "mock" not in text.lower(), path


@pytest.mark.parametrize("private", PRIVATE, ids=lambda private: private.name)
def test_what_is_private_is_as_it_is_relied_on(private: Private) -> None:
    private.check(holder_of(private))


@pytest.mark.parametrize("private", PRIVATE, ids=lambda private: private.name)
def test_a_member_that_is_renamed_is_noticed(private: Private) -> None:
    holder, name = holder_of(private), private.name.rsplit(".", 1)[-1]
    members = {member: inspect.getattr_static(holder, member) for member in dir(holder)}
    members[f"{name}_renamed"] = members.pop(name)
    with pytest.raises((AttributeError, AssertionError)):
        private.check(types.SimpleNamespace(**members))


def holder_of(private: Private) -> Any:
    module, _, name = private.holder.rpartition(".")
    if private.holder in sys.modules:
        return sys.modules[private.holder]
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    ("planted", "line", "name"),
    [
        ("from transformers.models.bloom.modeling_bloom import _get_alibi_slopes", 1, "_get_alibi_slopes"),
        ("from torch._subclasses import FakeTensorMode", 1, "torch._subclasses"),
        ("import torch._dynamo", 1, "torch._dynamo"),
        ("import torch\n\ntorch.distributed.distributed_c10d._world", 3, "_world"),
        ("from torch import distributed as dist\ndist._verify_params_across_processes()", 2,
         "_verify_params_across_processes"),
        ("def save(trainer):\n    trainer._save_checkpoint(None, None)", 2, "_save_checkpoint"),
        ("def save(trainer):\n    trainer._save()", 2, "_save"),  # although we may have a `_save` of our own
        ("from transformers import Trainer\nclass T(Trainer):\n    def _evaluate(self):\n        pass", 3,
         "_evaluate"),
        ("from transformers import Trainer\nclass T(Trainer):\n    def evaluate(self):\n"
         "        return super()._evaluate(None, None)", 4, "_evaluate"),
        ("from transformers import Trainer\nclass T(Trainer):\n    def f(self):\n"
         "        self._created_lr_scheduler = True", 4, "_created_lr_scheduler"),
        ("from training.run.sft_trainer import SFTTrainer\nclass T(SFTTrainer):\n    def f(self):\n"
         "        self._prepare_inputs({})", 4, "_prepare_inputs"),
        ("from torch import nn\nclass A(nn.Module):\n    pass\nclass B(A):\n    _version = 2", 5, "_version"),
    ],
)  # fmt: skip
def test_a_planted_use_is_found(planted: str, line: int, name: str) -> None:
    own = own_names([planted, "def _save(): pass"])
    assert Use(line, name) in private_uses(planted, own)


def test_what_is_ours_is_not_taken_for_a_librarys() -> None:
    text = (
        "import os\nfrom torch import nn\nclass A(nn.Module):\n    def f(self):\n        self._mine = 1\n"
        "        return self._mine, self._ours()\n    def _ours(self):\n        os._exit(1)\n"
    )
    assert private_uses(text, own_names([text])) == []


@pytest.mark.parametrize(
    "planted",
    [
        "from torch.utils import cpp_extension\ncpp_extension.FileBaton = None",
        "import deepspeed\ndeepspeed.zero.GatheredParameters = None",
        "from transformers import Trainer\nTrainer.log = print",
        "from transformers import Trainer\nsetattr(Trainer, 'log', print)",
        "def f(adapted):\n    adapted.save_pretrained = print",
        "def f(trainer):\n    setattr(trainer, 'evaluate', print)",
    ],
)
def test_a_planted_patch_is_found(planted: str) -> None:
    (found,) = replacements(planted)
    assert found.line == 2


def test_settings_are_no_patches() -> None:
    text = "def f(args, model):\n    args.output_dir = ''\n    model.config.use_cache = False"
    assert list(replacements(text)) == []


class Events(TrainerCallback):
    """Records what transformers calls, and moves the directory of a save as training.run does."""

    def __init__(self, place: Path) -> None:
        self.seen: list[str] = []
        self._place = place

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append("on_train_begin")

    def on_step_end(self, args, state, control, **kwargs: Any) -> None:
        self.seen.append("on_step_end")
        args.output_dir = str(self._place)
        assert control.should_save  # set by transformers' own callback, which was there first

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append("on_save")


class Recorded(Trainer):
    """Records the calls of the methods that SFTTrainer overrides."""

    def training_step(self, model, inputs, *args):
        loss = super().training_step(model, inputs, *args)
        self.events.seen.append(f"training_step, sync_gradients {self.accelerator.sync_gradients}")
        assert any(weight.grad.abs().max() > 1 for weight in model.parameters())  # not yet clipped
        return loss

    def log(self, logs, *args, **kwargs) -> None:
        self.events.seen.append(f"log {'loss' if 'loss' in logs else ''}".strip())
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args, **kwargs):
        self.events.seen.append("evaluate")
        return super().evaluate(*args, **kwargs)

    def save_model(self, directory, *args, **kwargs) -> None:
        self.events.seen.append(f"save_model {Path(directory).relative_to(self.events._place)}")
        assert not Path(directory).exists()  # nothing was written before
        super().save_model(directory, *args, **kwargs)


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([10.0]))

    def forward(self, x, labels):
        return {"loss": ((self.slope * x - labels) ** 2).mean()}


def test_trainer_calls_what_we_override_in_the_order_that_we_rely_on(tmp_path: Path) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, logging_steps=1, save_steps=1, eval_strategy="steps",
        eval_steps=1, use_cpu=True, report_to=[], disable_tqdm=True, gradient_accumulation_steps=2,
        per_device_train_batch_size=1,
    )  # fmt: skip
    rows = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 4
    trainer = Recorded(model=Line(), args=args, train_dataset=rows, eval_dataset=rows)
    trainer.events = Events(tmp_path / ".incomplete-1")
    trainer.add_callback(trainer.events)
    trainer.train()
    assert trainer.events.seen == [
        "on_train_begin",
        "training_step, sync_gradients False",
        "training_step, sync_gradients True",
        "on_step_end",
        "log loss",
        "evaluate",
        "log",
        "save_model checkpoint-1",
        "on_save",
        "log",
    ]
    written = {path.name for path in (tmp_path / ".incomplete-1" / "checkpoint-1").iterdir()}
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= written
    assert [path.name for path in tmp_path.iterdir()] == [".incomplete-1"]


def test_without_a_limit_transformers_removes_no_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
    rotate_checkpoints(str(tmp_path), save_total_limit=None, use_mtime=True)
    assert len(list(tmp_path.iterdir())) == 3


def test_deepspeed_says_the_norm_and_has_builders_with_these_methods() -> None:
    assert list(inspect.signature(deepspeed.DeepSpeedEngine.get_global_grad_norm).parameters) == ["self"]
    for name in ("FusedAdamBuilder", "CPUAdamBuilder"):
        builder = get_accelerator().create_op_builder(name)
        assert isinstance(builder.name, str)
        for method in (builder.is_compatible, builder.load):
            assert "verbose" in inspect.signature(method).parameters


class Asked(dict):
    """A dictionary that notes which keys it is asked for."""

    def __init__(self, content: dict, keys: set[str]) -> None:
        super().__init__(content)
        self.asked = keys

    def __contains__(self, key: object) -> bool:
        self.asked.add(key)
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> "Asked":
        return self

    def __copy__(self) -> "Asked":
        return self


def test_the_keys_of_deepspeeds_file_are_those_that_it_reads() -> None:
    asked: set[str] = set()
    DeepSpeedConfig(Asked({"train_micro_batch_size_per_gpu": 1}, asked))
    removed = set(_REMOVED_TOP_LEVEL_CONFIG_KEYS)
    assert "elasticity" in removed & asked
    assert asked - removed == {
        *TOP_LEVEL,
        "bfloat16",
    }  # an old name of bf16, which transformers does not know


def test_deepspeed_tells_the_weights_that_its_optimizers_hold() -> None:
    assert list(inspect.signature(deepspeed.utils.safe_get_full_fp32_param).parameters) == ["param"]
    for class_, masters in ((FP16_UnfusedOptimizer, "fp32_groups"), (FP16_Optimizer, "fp32_groups_flat")):
        attributes = own_names([inspect.getsource(class_)])
        assert {"fp16_groups", masters, "clip_grad"} <= attributes


def test_peft_keeps_trainable_rows_where_our_bloom_looks_for_them() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 2)

    config = peft.TrainableTokensConfig(target_modules=["embedding"], token_indices=[3, 4])
    layer = peft.get_peft_model(Small(), config).base_model.model.embedding
    assert isinstance(layer, TrainableTokensLayer)
    assert (layer.merged, layer.disable_adapters, list(layer.active_adapters)) == (False, False, ["default"])
    assert layer.token_indices["default"] == [3, 4]
    assert torch.equal(layer.trainable_tokens_delta["default"], layer.base_layer.weight[[3, 4]])
    assert "save_embedding_layers" in inspect.signature(peft.PeftModelForCausalLM.save_pretrained).parameters
