"""The script that compares us with the official code: on recorded files, and on files made here.

The files made here hold what the official arithmetic gives, written once more from its formulas: plain loops over rows
and tokens in float64, every row by itself without padding or cache, nothing of the package in it.
"""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "official_parity.py"
VOCABULARY, EOS, PROMPT_WIDTH, RESPONSE_WIDTH, LM_WIDTH = 101, 100, 7, 9, 16
PROMPT_LENGTHS = (7, 4, 6, 1, 5, 7)
RESPONSE_LENGTHS = (9, 8, 9, 3, 1, 5)  # 9: no eos
OWN_LENGTHS = (6, 9, 2, 9, 5, 8)
LM_LENGTHS = (13, 11, 16, 15, 1, 12)
PAPER = {
    "temperature": 1.0,
    "gamma": 0.95,
    "cliprange": 0.2,
    "cliprange_reward": 100,
    "reward_scaling": 0.5,
    "length_norm": True,
    "single_step_reg": True,
    "teacher_mixed_alpha": 0.2,
    "kd_ratio": 0.5,
    "lm_coef": 1.0,
    "no_lm": False,
}
CASES = {
    "paper": {},
    "plain": {"teacher_mixed_alpha": None, "single_step_reg": False, "gamma": 1.0, "reward_scaling": None,
              "cliprange_reward": 0, "no_lm": True, "length_norm": False},
    "cool": {"temperature": 0.7},
    "cool without single step": {"temperature": 0.7, "single_step_reg": False, "teacher_mixed_alpha": 0.5},
    "hot": {"temperature": 1.6, "gamma": 0.9, "length_norm": False},
    "clipped": {"cliprange": 0.05, "cliprange_reward": 2, "gamma": 1.0},
    "scaled only": {"reward_scaling": 2.0, "cliprange_reward": 0, "gamma": 0.5},
    "alpha 0": {"teacher_mixed_alpha": 0.0, "lm_coef": 0.3},
    "alpha 1": {"teacher_mixed_alpha": 1.0, "cliprange": 0.5},
    "all teacher": {"kd_ratio": 1.0, "lm_coef": 5.0, "temperature": 0.7, "cliprange_reward": 2},
    "no teacher": {"kd_ratio": 0.0, "gamma": 0.0},
}  # fmt: skip
CONFIGS = {
    "gpt2": lambda width: {"n_embd": width, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "llama": lambda width: {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
                            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
}  # fmt: skip


@pytest.fixture(scope="module")
def parity():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("official_parity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the official arithmetic, by loops --------------------------------------------------------------------------------


def build(architecture, width, generator):
    config = AutoConfig.for_model(
        architecture, **CONFIGS[architecture](width), vocab_size=VOCABULARY, initializer_range=0.3
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        spread = 0.3 if parameter.ndim > 1 else 0.1
        parameter.data = parameter.data * (parameter.ndim == 1) + spread * torch.randn(
            parameter.shape, generator=generator
        )
    return model


def pad(rows, width, left=False):
    ids = torch.full((len(rows), width), EOS)
    for row, tokens in enumerate(rows):
        place = slice(width - len(tokens), width) if left else slice(0, len(tokens))
        ids[row, place] = torch.tensor(tokens)
    return ids


def draw_tokens(count, generator):
    return torch.randint(0, EOS, (count,), generator=generator).tolist()


def draw_response(length, generator):
    """``length`` tokens, the last one eos unless the row is full."""
    tokens = draw_tokens(length, generator)
    return tokens if length == RESPONSE_WIDTH else [*tokens[:-1], EOS]


def response_logits(model, prompt, response):
    """Logits that predict each token of the response: ``[T, V]``."""
    return model(input_ids=torch.tensor([prompt + response])).logits[0][len(prompt) - 1 : -1]


def log_softmax_at(logits, token, temperature):
    scaled = logits / temperature
    return scaled[token] - scaled.logsumexp(-1)


def logprobs(model, prompt, response, temperature):
    with torch.no_grad():
        logits = response_logits(model, prompt, response)
    return [log_softmax_at(row, token, temperature).item() for row, token in zip(logits, response, strict=True)]


def k3(log_p, log_q):
    return math.exp(log_p - log_q) - 1 - (log_p - log_q)


def table(rows, fill=0.0):
    """Lists of unequal length as ``[B, T]`` float32."""
    values = torch.full((len(rows), RESPONSE_WIDTH), fill, dtype=torch.float64)
    for row, entries in enumerate(rows):
        values[row, : len(entries)] = torch.tensor(entries, dtype=torch.float64)
    return values.float()


def rollout_side(student, teacher, prompts, responses, own, args):
    """What the sampler stores, as lists over rows of lists over tokens."""
    temperature, alpha = args["temperature"], args["teacher_mixed_alpha"]
    stored = {"logprobs": [], "t_rewards": [], "w": [], "rewards": [], "rev_kl": []}
    for prompt, response, own_response in zip(prompts, responses, own, strict=True):
        log_q = logprobs(student, prompt, response, temperature)
        log_p = logprobs(teacher, prompt, response, temperature)
        reward_log_p = logprobs(teacher, prompt, response, 1.0)
        rewards = []
        for p, q in zip(reward_log_p, log_q, strict=True):
            reward = p - q
            if args["reward_scaling"] is not None:
                reward = reward / args["reward_scaling"]
            if args["cliprange_reward"]:
                reward = min(max(reward, -args["cliprange_reward"]), args["cliprange_reward"])
            rewards.append(reward)
        stored["logprobs"].append(log_q)
        stored["t_rewards"].append(reward_log_p)
        stored["rewards"].append(rewards)
        stored["w"].append([
            1.0 if alpha is None else math.exp(q) / ((1 - alpha) * math.exp(q) + alpha * math.exp(p))
            for p, q in zip(log_p, log_q, strict=True)
        ])  # fmt: skip
        own_log_q = logprobs(student, prompt, own_response, temperature)
        own_log_p = logprobs(teacher, prompt, own_response, 1.0)
        stored["rev_kl"].append([k3(p, q) for p, q in zip(own_log_p, own_log_q, strict=True)])
    return stored


def advantages(rewards, gamma):
    """Returns per token left, and the same whitened over all positions, padding included."""
    returns = []
    for row in rewards:
        length = len(row)
        returns.append([
            math.fsum(gamma ** (s - t) * row[s] for s in range(t, length)) / (length - t) for t in range(length)
        ])  # fmt: skip
    everything = [row[t] if t < len(row) else 0.0 for row in returns for t in range(RESPONSE_WIDTH)]
    mean = math.fsum(everything) / len(everything)
    variance = math.fsum((x - mean) ** 2 for x in everything) / len(everything)
    whitened = [(x - mean) / math.sqrt(variance + 1e-8) for x in everything]
    rows = [whitened[b * RESPONSE_WIDTH : (b + 1) * RESPONSE_WIDTH] for b in range(len(rewards))]
    return returns, rows


def policy_losses(student, teacher, prompts, responses, stored, whitened, args):
    """Clipped policy gradient and exact reverse KL, both per response token; with gradient."""
    policy, single, count = 0.0, 0.0, 0
    for b, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        now = response_logits(student, prompt, response)
        with torch.no_grad():
            reference = response_logits(teacher, prompt, response)
        for t, token in enumerate(response):
            log_q = log_softmax_at(now[t], token, args["temperature"])
            ratio = (log_q - stored["logprobs"][b][t]).exp() * stored["w"][b][t]
            low, high = 1 - args["cliprange"], 1 + args["cliprange"]
            policy = policy + torch.maximum(-whitened[b][t] * ratio, -whitened[b][t] * ratio.clamp(low, high))
            q = (now[t] / args["temperature"]).softmax(-1)
            p = (reference[t] / args["temperature"]).softmax(-1)
            single = single + (q * (q.log() - p.log())).sum()
            count += 1
    return policy / count, single / count


def pretraining_losses(student, teacher, rows):
    """Cross-entropy with the next token, and with the teacher's distribution, per token; with gradient."""
    lm, kd, count = 0.0, 0.0, 0
    for tokens in rows:
        now = student(input_ids=torch.tensor([tokens[:-1]])).logits[0]
        with torch.no_grad():
            reference = teacher(input_ids=torch.tensor([tokens[:-1]])).logits[0]
        for t, token in enumerate(tokens[1:]):
            log_q = now[t] - now[t].logsumexp(-1)
            lm, kd = lm - log_q[token], kd - (reference[t].softmax(-1) * log_q).sum()
            count += 1
    return lm / count, kd / count


def discounted(rows, lengths, args, gamma):
    """The logged mean over rows of a discounted sum, per token if the flag says so."""
    sums = [math.fsum(gamma**t * value for t, value in enumerate(row)) for row in rows]
    return sum(s / (n if args["length_norm"] else 1) for s, n in zip(sums, lengths, strict=True)) / len(rows)


def make_file(path, architecture, changes, seed=0):
    """Write a file in the format of the recorded ones."""
    args = {**PAPER, **changes}
    generator = torch.Generator().manual_seed(seed)
    teacher, student = build(architecture, 24, generator), build(architecture, 16, generator)
    tensors = {f"teacher.{k}": v.clone() for k, v in teacher.state_dict().items()}
    tensors |= {f"student_at_rollout.{k}": v.clone() for k, v in student.state_dict().items()}
    configs = {"teacher_config": teacher.config.to_json_string(), "student_config": student.config.to_json_string()}
    prompts = [draw_tokens(n, generator) for n in PROMPT_LENGTHS]
    responses = [draw_response(n, generator) for n in RESPONSE_LENGTHS]
    own = [draw_response(n, generator) for n in OWN_LENGTHS]
    if args["teacher_mixed_alpha"] is None:
        own = responses
    lengths, own_lengths = [len(r) for r in responses], [len(r) for r in own]

    stored = rollout_side(student.double(), teacher.double(), prompts, responses, own, args)
    returns, whitened = advantages(stored["rewards"], args["gamma"])
    for parameter in student.float().parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    tensors |= {f"student_at_update.{k}": v.clone() for k, v in student.state_dict().items()}
    policy, single = policy_losses(student.double(), teacher, prompts, responses, stored, whitened, args)
    total = policy + single if args["single_step_reg"] else policy
    stats = {"pg_loss": policy, "reg_loss": single, "rl_loss": total}
    if not args["no_lm"]:
        rows = [draw_tokens(n + 1, generator) for n in LM_LENGTHS]
        lm, kd = pretraining_losses(student, teacher, rows)
        pretraining = (1 - args["kd_ratio"]) * lm + args["kd_ratio"] * kd
        total = total + args["lm_coef"] * pretraining
        stats |= {"pt_loss": pretraining, "lm_loss": lm, "ds_loss": kd}
        labels = pad([row[1:] for row in rows], LM_WIDTH)
        real = torch.arange(LM_WIDTH) < torch.tensor(LM_LENGTHS)[:, None]
        tensors |= {
            "lm_input_ids": pad([row[:-1] for row in rows], LM_WIDTH),
            "lm_attention_mask": real.long(),
            "lm_labels": labels.masked_fill(~real, -100),
        }
    total.backward()
    stats |= {
        "tot_loss": total,
        "reward": torch.tensor(discounted(stored["rewards"], lengths, args, args["gamma"])),
        "rev_kl": torch.tensor(discounted(stored["rev_kl"], own_lengths, args, 1.0)),
        "mixed_lens": torch.tensor(sum(lengths) / 6),
        "stu_lens": torch.tensor(sum(own_lengths) / 6),
    }
    mask = torch.arange(RESPONSE_WIDTH) < torch.tensor(lengths)[:, None]
    tensors |= {f"stats.{name}": value.detach().float() for name, value in stats.items()}
    tensors |= {f"grad.{name}": p.grad.float() for name, p in student.named_parameters()}
    tensors |= {f"rollout.{name}": table(rows, 1.0 if name == "w" else 0.0) for name, rows in stored.items()}
    tensors |= {
        "prompt_ids": pad(prompts, PROMPT_WIDTH, left=True),
        "prompt_mask": (torch.arange(PROMPT_WIDTH) >= PROMPT_WIDTH - torch.tensor(PROMPT_LENGTHS)[:, None]).long(),
        "response_ids": pad(responses, RESPONSE_WIDTH),
        "student_response_ids": pad(own, RESPONSE_WIDTH),
        "rollout.ent_rewards": -tensors["rollout.logprobs"],
        "rollout.mask": mask,
        "rollout.lens": torch.tensor(lengths),
        "rollout.s_lens": torch.tensor(own_lengths),
        "update.mask": mask.long(),
        "update.advantages_unwhitened": table(returns),
        "update.advantages": table(whitened),
    }
    metadata = {"args": json.dumps(args), "architecture": architecture, "eos_token_id": str(EOS), **configs}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    return path


# --- agreement --------------------------------------------------------------------------------------------------------


def run(parity, monkeypatch, capsys, *arguments):
    """Exit status and printed lines of the script."""
    monkeypatch.setattr(sys, "argv", ["official_parity.py", *map(str, arguments)])
    capsys.readouterr()
    status = parity.main()
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("case", CASES)
def test_we_agree_with_the_official_arithmetic(case, architecture, parity, tmp_path):
    errors = parity.compare(make_file(tmp_path / "case.safetensors", architecture, CASES[case]))
    assert max(errors.values()) < 1e-5, errors
    required = {"logprobs", "w", "rewards", "rev_kl", "advantages_unwhitened", "advantages", "pg", "reg", "total",
                "grad_worst"}  # fmt: skip
    required |= set() if CASES[case].get("no_lm") else {"lm", "kd", "pt"}
    assert required <= errors.keys()


def test_we_agree_with_the_recorded_numbers(parity, golden_folder, monkeypatch, capsys):
    files = sorted(golden_folder.glob("*.safetensors"))
    status, lines = run(parity, monkeypatch, capsys, *files)
    assert status == 0
    assert [line["file"] for line in lines] == [file.name for file in files]
    assert all(line["agrees"] and line["worst"] < 1e-5 for line in lines)


@pytest.mark.parametrize(
    ("row", "length"),
    [
        ([5, 6, 7, 8], 4),  # no eos: everything counts
        ([9, 9, 9, 9], 1),  # eos at once, then padding that looks like eos
        ([5, 9, 6, 9], 2),  # the first eos ends the response, whatever follows
        ([5, 6, 7, 9], 4),  # the eos itself is a target
        ([0, 0, 9, 0], 3),  # a pad id inside does not end a response
    ],
)
def test_a_response_ends_with_its_first_eos(row, length, parity):
    assert parity.response_lengths(torch.tensor([row]), eos_token_id=9).tolist() == [length]


# --- disagreement -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good_file(tmp_path_factory):
    return make_file(tmp_path_factory.mktemp("parity") / "good.safetensors", "gpt2", {})


def change(path, source, changes):
    """Copy a file with some of its tensors changed."""
    from safetensors import safe_open

    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(source)
    for name, function in changes.items():
        tensors[name] = function(tensors[name]).contiguous()
    save_file(tensors, path, metadata)
    return path


# what the script reports, and the tensor that it comes from
SOURCES = {
    "logprobs": "rollout.logprobs",
    "teacher_logprobs": "rollout.t_rewards",
    "w": "rollout.w",
    "rewards": "rollout.rewards",
    "rev_kl": "rollout.rev_kl",
    "mask": "rollout.mask",
    "lens": "rollout.lens",
    "s_lens": "rollout.s_lens",
    "update_mask": "update.mask",
    "advantages_unwhitened": "update.advantages_unwhitened",
    "advantages": "update.advantages",
    "mean_reward": "stats.reward",
    "mean_rev_kl": "stats.rev_kl",
    "pg": "stats.pg_loss",
    "reg": "stats.reg_loss",
    "rl": "stats.rl_loss",
    "lm": "stats.lm_loss",
    "kd": "stats.ds_loss",
    "pt": "stats.pt_loss",
    "total": "stats.tot_loss",
    "grad_worst": "grad.transformer.h.1.mlp.c_fc.bias",
}


def nudge(value):
    """Change one entry by about a thousandth of the whole."""
    changed = value.clone()
    flat = changed.view(-1)
    if value.dtype == torch.float32:
        flat[0] += 1e-3 * value.norm()
    else:
        flat[0] = ~flat[0] if value.dtype == torch.bool else flat[0] + 1
    return changed


def test_every_recorded_number_counts(parity, good_file, tmp_path):
    """Each quantity is compared with its own tensor: a change of it shows in its error and in no other."""
    clean = parity.compare(good_file)
    assert clean.keys() == SOURCES.keys()
    changed = parity.compare(change(tmp_path / "bad.safetensors", good_file, dict.fromkeys(SOURCES.values(), nudge)))
    for name in SOURCES:
        assert clean[name] < 1e-5
        assert changed[name] > 5e-4, name


@pytest.mark.parametrize("name", ["rollout.w", "stats.tot_loss", "grad.transformer.h.1.mlp.c_fc.bias"])
@pytest.mark.parametrize("function", [nudge, lambda value: value * float("nan")], ids=["nudged", "nan"])
def test_the_script_exits_with_one_where_we_disagree(name, function, parity, good_file, tmp_path, monkeypatch, capsys):
    bad = change(tmp_path / "bad.safetensors", good_file, {name: function})
    status, lines = run(parity, monkeypatch, capsys, good_file, bad, good_file)
    assert status == 1
    assert [line["agrees"] for line in lines] == [True, False, True]


def test_the_tolerance_is_an_option(parity, good_file, tmp_path, monkeypatch, capsys):
    bad = change(tmp_path / "bad.safetensors", good_file, {"stats.tot_loss": nudge})
    assert run(parity, monkeypatch, capsys, bad, "--tolerance", "0.01")[0] == 0
    assert run(parity, monkeypatch, capsys, good_file, "--tolerance", "1e-12")[0] == 1
