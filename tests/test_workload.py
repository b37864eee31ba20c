"""What --dry_run counts is what a run does: tokens, operations, bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, LlamaConfig

from analysis.base.embedded import SMOLLM2_INSTALL
from analysis.base.errors import UserError
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import Reply, ReplyMeans, Sampling
from analysis.engine.request import Request
from analysis.engine.run import Run
from analysis.experiments import preparation, runs, workload
from analysis.experiments.control import ControlPrompts, ControlStage
from analysis.experiments.dry_run import unit_work
from analysis.experiments.machine import Machine
from analysis.experiments.preparation import Preparation, encode_sentences, pool_sentences, prepare
from analysis.experiments.report import ReportPrompts, ReportStage
from analysis.experiments.study import DraftStudy, draft_study
from analysis.experiments.units import run
from analysis.experiments.workload import Planned, Work, flops, memory, work_of
from analysis.models.blocks import decoder_blocks
from analysis.models.shape import Shape, load_shape, load_tokenizer, run_sizes
from analysis.process_prompts import Encoded, Prompter, load_prompts
from analysis.results.schema import CONTROL, REPORT
from analysis.results.store import Store, UnitKey, read
from configs.settings import Settings
from data.load import load_dataset
from tests.conftest import ARCHITECTURES, TINY, make_model
from utils import LoadedModel, load_model

SETTINGS = Settings(
    n_axis=20, n_trial=20, max_pc=1, n_random=0, n_shuffled=0, shots=(0, 2, 4), max_new_tokens=5,
    report_examples=12, levels=(2, 4),
)  # fmt: skip
BUDGET = 64


@pytest.fixture(scope="module")
def shape(tiny_folder: Path) -> Shape:
    """The sizes of the tiny model, from its folder."""
    return load_shape(str(tiny_folder))


@pytest.fixture(scope="module")
def draft(tiny_folder: Path, tmp_path_factory) -> DraftStudy:
    """A small study that nothing was prepared for."""
    store = Store(tmp_path_factory.mktemp("nothing"), str(tiny_folder), "commonsense")
    return draft_study(store, SETTINGS, n_layers=4)


@pytest.fixture(scope="module")
def machine() -> Machine:
    """Loads no model: what is counted needs none."""
    return Machine(BUDGET, device="cpu")


def control_requests(draft: DraftStudy, lm: LoadedModel, exp: int = 0, levels: int = 2) -> list[Request]:
    prompts = ControlPrompts(draft, Prompter(lm.tokenizer, lm.name))
    return prompts.requests(UnitKey(CONTROL, "lr", 1, exp, levels))


def report_requests(draft: DraftStudy, lm: LoadedModel, exp: int = 0) -> list[Request]:
    prompts = ReportPrompts(draft, Prompter(lm.tokenizer, lm.name))
    return prompts.requests(UnitKey(REPORT, "lr", 1, exp))


def forwarded(lm: LoadedModel, requests: Sequence[Request], layers: Sequence[int]) -> tuple[int, PrefixTree]:
    """Run the engine; return the tokens that the embedding layer saw, and the engine."""
    tree, seen = PrefixTree(lm.model, lm.tokenizer, BUDGET), []
    table = lm.model.get_input_embeddings()
    handle = table.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    try:
        tree.read(requests, layers, answers=[5, 6])
    finally:
        handle.remove()
    return sum(seen), tree


# ---------------------------------------------------------------- the model


def test_the_shape_is_that_of_the_configuration(shape):
    expected = {
        "n_layers": 4, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "intermediate": 48,
        "vocab": 512, "tied": False, "max_positions": 2048, "eager": False,
    }  # fmt: skip
    assert {name: getattr(shape, name) for name in expected} == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_those_of_the_model(name, tmp_path):
    model = make_model(ARCHITECTURES[name])
    model.config.save_pretrained(tmp_path)
    shape = load_shape(str(tmp_path))
    assert shape.n_parameters == sum(p.numel() for p in model.parameters())
    linear = [m for m in decoder_blocks(model).modules() if isinstance(m, nn.Linear)]
    assert shape.block_parameters == sum(m.weight.numel() for m in linear)
    assert shape.tied == (model.lm_head.weight is model.model.embed_tokens.weight)
    assert shape.eager == ("eager" in name)


def test_configurations_that_leave_sizes_out_have_defaults(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    shape = load_shape(str(tmp_path))
    assert shape.n_parameters == 124_439_808
    assert (shape.kv_heads, shape.head_dim, shape.intermediate, shape.max_positions) == (12, 64, 3072, 1024)


def test_a_model_larger_than_this_machine_has_a_shape(tmp_path):
    LlamaConfig(
        vocab_size=128_256, hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8,
    ).save_pretrained(tmp_path)  # fmt: skip
    assert load_shape(str(tmp_path)).n_parameters == 70_553_706_496  # 263 GiB in float32


def test_the_embedded_model_has_135_million_parameters():
    try:
        shape = load_shape("smollm2")
    except UserError as error:
        assert SMOLLM2_INSTALL in str(error)
        pytest.skip(str(error))
    assert shape.n_parameters == 134_515_008 and shape.tied


def test_a_gguf_file_is_converted_with_its_weights(tiny_folder, monkeypatch):
    devices = []
    monkeypatch.setattr(
        "analysis.models.shape.local_files", lambda t: devices.append(torch.empty(1).device.type) or t
    )
    load_shape(str(tiny_folder))
    assert devices == ["cpu"]  # on "meta" the cached folder would hold no weights


@pytest.mark.parametrize("load", [load_shape, load_tokenizer])
def test_an_unknown_model_is_the_same_error_as_when_it_is_loaded(load, tmp_path):
    for name in (str(tmp_path / "nothing"), str(tmp_path / "no.gguf")):
        with pytest.raises(UserError) as wanted:
            load_model(name)
        with pytest.raises(UserError) as got:
            load(name)
        assert str(got.value)[:60] == str(wanted.value)[:60]


def test_the_tokenizer_is_that_of_the_model(tiny_folder, tiny_lm):
    text = "I went home."
    assert load_tokenizer(str(tiny_folder))(text).input_ids == tiny_lm.tokenizer(text).input_ids


def test_sizes_of_a_run_are_those_that_the_engine_takes(tiny_lm):
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer)
    assert run_sizes("cpu", "auto", None) == (tiny_lm.dtype, tree.token_budget) == ("float32", 512)
    assert run_sizes("cuda:1", "auto", None) == ("bfloat16", 4096)
    assert run_sizes("cuda", "float16", 100) == ("float16", 100)


# ---------------------------------------------------------------- the work


def test_counts_of_three_short_sequences():
    #  1 2 3 +reply of 2;  1 2 4 5;  9
    requests = [
        Request([1, 2, 3], [(0, 2)], reply=Sampling(2)), Request([1, 2, 4, 5], logits_at=[1, 3]), Request([9])
    ]  # fmt: skip
    work = work_of(requests, n_layers=3, token_budget=32)
    assert (work.tokens, work.plain, work.replies) == (6, 8, 2)
    assert work.pairs == (1 + 2 + 3 + 3 + 4 + 1) + (4 + 5)
    assert work.answers == 3 and work.rows == 3 + 2  # node "1 2", "1 2 4 5", and "1 2 3" with its reply
    assert (work.states, work.writers, work.longest) == (3, 1, 5)


def test_work_adds_counts_and_keeps_peaks():
    a, b = Work(tokens=10, rows=3, slots=7, longest=5), Work(tokens=1, pairs=4, slots=9)
    assert a + b == b + a == Work(tokens=11, rows=3, pairs=4, slots=9, longest=5)
    assert a * 3 == a + a + a
    assert a * 0 == Work() and a + Work() == a
    assert Work(tokens=10) * (1 / 3) == Work(tokens=3)


def test_a_control_unit_forwards_the_tokens_counted(tiny_lm, draft, machine):
    work = ControlStage(draft, ["lr"], "1", [0], machine).expected(UnitKey(CONTROL, "lr", 1, 0))
    requests = control_requests(draft, tiny_lm)
    tokens, tree = forwarded(tiny_lm, requests, range(4))
    assert tree.total.prompt == work.tokens and tree.total.asked == work.plain
    assert tree.total.reply <= work.replies == 3 * 2 * 2 * 5  # N, flips, targets, longest reply
    assert tokens == work.tokens + tree.total.reply


def test_a_report_unit_forwards_the_tokens_counted(tiny_lm, draft, machine):
    work = ReportStage(draft, ["lr"], "1", [0], machine).expected(UnitKey(REPORT, "lr", 1, 0))
    requests = report_requests(draft, tiny_lm)
    tokens, tree = forwarded(tiny_lm, requests, ())
    assert tokens == tree.total.prompt == work.tokens
    assert tree.total.asked == work.plain == work_of(requests[:1], 0, BUDGET).plain * 2
    assert work.rows == 2 * 12 - 1  # before the first label, the two flips are one


def sentences(lm: LoadedModel) -> list[Encoded]:
    dataset = load_dataset("commonsense", SETTINGS.seed, SETTINGS.n_axis, SETTINGS.n_trial).compact().dataset
    return encode_sentences(lm, dataset, load_prompts("commonsense"))


def test_the_preparation_forwards_the_tokens_counted(tiny_lm, draft, machine):
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer, BUDGET)
    pool_sentences(tree, sentences(tiny_lm), range(4))
    work = Preparation([draft.store], SETTINGS, machine).expected("commonsense")
    assert (tree.total.prompt, tree.total.asked) == (work.tokens, work.plain)
    assert work.states == 40 * 4 and work.rows == 0


def test_every_token_is_read_in_as_many_passes_as_counted(tiny_lm, draft, machine, tmp_path, monkeypatch):
    spans = sum(e.spans[0][1] - e.spans[0][0] for e in sentences(tiny_lm))
    monkeypatch.setattr(preparation, "BYTES_AT_ONCE", 3 * spans * 32 * 4)  # 3 of 4 layers
    store = dataclasses.replace(draft.store, root=tmp_path)
    loaded = Machine(BUDGET, {store.model: tiny_lm})
    assert run(Preparation([store], SETTINGS, loaded, "each")) == (1, 0)
    once, each = (
        Preparation([store], SETTINGS, machine, how).expected("commonsense") for how in ("mean", "each")
    )
    assert loaded.engine(store.model).total.prompt == each.tokens == 2 * once.tokens
    assert each.states == 3 * spans


def test_units_on_disk_took_the_tokens_counted(tiny_lm, draft, machine, tmp_path):
    settings = dataclasses.replace(SETTINGS, levels=(2,))
    store = dataclasses.replace(draft.store, root=tmp_path)
    options = {"models": {store.model: tiny_lm}, "token_budget": BUDGET}
    prepare(tiny_lm, store.dataset, settings, store, token_budget=BUDGET)
    runs.run_control(store, settings, ["lr"], "1", [3], **options)
    runs.run_report(store, store.model, settings, ["lr"], "1", [3], **options)
    for stage in (ControlStage, ReportStage):
        (key,) = store.units(stage.kind)
        work, tokens = stage(draft, ["lr"], "1", [3], machine).expected(key), read(store.unit(key))["tokens"]
        assert (tokens["prompt"], tokens["asked"]) == (work.tokens, work.plain)
        assert tokens["reply"] <= work.replies


def test_a_unit_is_the_mean_of_three_experiments_and_of_all_levels(tiny_lm, draft, machine):
    units = [
        work_of(control_requests(draft, tiny_lm, exp, levels), 4, BUDGET)
        for exp in (1, 2, 3)
        for levels in (2, 4)
    ]
    stage = ControlStage(draft, ["lr", "pc1"], "1,2", range(1, 50), machine)
    work = unit_work(stage, stage.units())
    assert work.tokens == round(np.mean([unit.tokens for unit in units]))
    assert len({unit.tokens for unit in units}) > 1
    assert work.longest == max(unit.longest for unit in units)
    assert unit_work(stage, []) == Work()


# ---------------------------------------------------------------- operations and bytes


def test_operations_are_those_that_pytorch_counts(shape):
    tokens = 30
    for kind in ("sdpa", "eager"):
        config = LlamaConfig(**TINY, attn_implementation=kind)
        model = make_model(config)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(torch.arange(tokens)[None])
        counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
        assert counts["aten.mm"] == flops(shape, Work(tokens=tokens, rows=tokens))
    # pytorch counts all tokens x tokens products; a token attends to those up to itself
    assert counts["aten.bmm"] == flops(shape, Work(pairs=tokens**2))


def test_the_cache_and_the_states_have_the_size_counted(tiny_lm, shape, draft, monkeypatch):
    requests = control_requests(draft, tiny_lm)
    run = Run(PrefixTree(tiny_lm.model, tiny_lm.tokenizer, BUDGET).context, requests, range(4), ())
    monkeypatch.setattr(run, "collect", list)  # which lets go of the sums
    run.go()
    work = work_of(requests, 4, BUDGET)
    need = memory(shape, work, "float32", BUDGET)
    assert need["cache"] == sum(t.nbytes for room in run.cache.rooms for t in (room.keys, room.values))
    held = ReplyMeans([Reply(Sampling(5))] * 12, n_layers=4)
    held.hold(0, [0], torch.zeros(1, shape.hidden))
    assert need["states"] == sum(t.nbytes for t in [run.spans.whole, held.ring, held.sums])
    assert need["weights"] == sum(p.nbytes for p in tiny_lm.model.parameters())


@pytest.mark.parametrize(("kind", "short"), [("sdpa", False), ("eager", False), ("sdpa", True)])
def test_a_run_stays_below_the_memory_bound(kind, short, shape, draft, tiny_lm):
    model = make_model(LlamaConfig(**TINY, attn_implementation=kind))
    tree = PrefixTree(model, tiny_lm.tokenizer, 256)
    requests = [Request(range(20))] if short else report_requests(draft, tiny_lm)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        tree.read(requests, answers=[5, 6])
    events = profiler.profiler.kineto_results.events()  # the public view has no order in time
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    peak = np.cumsum([size for _, size in changes]).max()
    eager = dataclasses.replace(shape, eager=kind == "eager")
    need = memory(eager, work_of(requests, 0, 256), "float32", 256)
    bound = sum(need.values()) - need["weights"]
    assert need["cache"] < peak < bound < 4 * peak


def test_the_text_tells_units_tokens_and_memory(shape):
    unit = Work(tokens=1000, plain=5000, replies=20, slots=100, longest=700)
    text = workload.describe(
        "org/tiny", shape, [Planned("control", unit, 3, 2), Planned("report", unit, 0, 4)], "float32", 64
    )
    rows = {line.split()[0]: line.split() for line in text.splitlines()}
    assert rows["control"][1:] == ["3", "2", "1,000", "3,000", "15,000", "5.0", "x", "60", "0.0"]
    assert rows["report"][1:] == ["0", "4", "1,000", "0", "0", "-", "0", "0.0"]
    assert f"{shape.n_parameters:,} parameters, 4 layers, float32" in text
    assert "700 tokens" in text and "2,048 tokens" in text and "TOO LONG" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_prompt_beyond_the_context_is_pointed_out(shape):
    work = Work(tokens=10, longest=2049)
    assert "TOO LONG" in workload.describe("org/tiny", shape, [Planned("report", work, 1)], "float32", 64)
    endless = dataclasses.replace(shape, max_positions=None)
    assert "context: unknown" in workload.describe(
        "org/tiny", endless, [Planned("report", work, 1)], "float32", 64
    )


def test_memory_of_8_billion_parameters():
    llama = Shape(32, 4096, 32, 8, 128, 14_336, 128_256, False, 131_072, 8_030_261_248, 6_979_321_856, False)
    need = memory(llama, Work(tokens=1, slots=1000), "bfloat16", 1)
    assert need["weights"] == 16_060_522_496
    assert need["cache"] == 1000 * 131_072  # 128 KiB a token
    assert flops(llama, Work(tokens=1)) == 2 * 6_979_321_856
