"""The tables of the technical report in both languages, made of what its sections found."""

from collections.abc import Callable, Sequence
from typing import Any

from training.card.page import FAILS, HOLDS

# Chooses between an English and a Chinese text.
Say = Callable[[str, str], str]

LANGUAGES: dict[str, Say] = {"en": lambda en, zh: en, "zh": lambda en, zh: zh}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A table in Markdown; all columns but the first `left` are aligned to the right."""
    marks = ["---"] * left + ["---:"] * (len(heads) - left)
    return [f"| {' | '.join(cells)} |" for cells in (heads, marks, *rows)]


def short(value: float) -> str:
    """A number with two significant digits, or as a whole number from 10 on."""
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f}"


def percent(share: float) -> str:
    return f"{share:.0%}"


def of_alibi(found: list[dict[str, float]], say: Say) -> list[str]:
    heads = [
        say("offset", "偏移"),
        say("library, bf16", "库，bf16"),
        say("its bound", "其上界"),
        say("one bf16 number each", "各用一个 bf16 数"),
        say("ours", "本项目"),
        say("our bound", "本项目上界"),
    ]
    names = ("library", "library bound", "one number each", "ours", "ours bound")
    rows = [[f"{line['offset']:,}", *(short(line[name]) for name in names)] for line in found]
    return table(heads, rows, left=0)


def of_bf16(found: list[dict[str, float]], say: Say) -> list[str]:
    heads = [
        say("tokens before", "之前的 token 数"),
        say("library, bf16", "库，bf16"),
        say("ours, bf16", "本项目，bf16"),
        say("ours, float32", "本项目，float32"),
    ]
    rows = [
        [
            f"{line['offset']:,}",
            f"{line['library, bf16']:.1%}",
            f"{line['ours, bf16']:.2%}",
            f"{line['ours, float32']:.1e}",
        ]
        for line in found
    ]
    return table(heads, rows, left=0)


def of_attention(found: list[dict[str, float]], say: Say) -> list[str]:
    heads = [
        say("tokens", "token 数"),
        say("all scores, s", "全部分数，秒"),
        say("dense bias, s", "稠密偏置，秒"),
        say("key columns, s", "键列，秒"),
        say("columns against bias", "键列比稠密偏置快"),
        say("scores, MB", "全部分数，MB"),
        say("bias, MB", "稠密偏置，MB"),
        say("columns, MB", "键列，MB"),
    ]
    rows = [
        [
            f"{line['length']:,}",
            *(f"{line[way]:.3f}" for way in ("scores", "bias", "columns")),
            f"{line['bias'] / line['columns']:.1f} x",
            *(f"{line[f'{way}, bytes'] / 1e6:,.1f}" for way in ("scores", "bias", "columns")),
        ]
        for line in found
    ]
    return table(heads, rows, left=0)


def of_labels(found: dict[str, Any], say: Say) -> list[str]:
    names = {
        "plain": say("an ordinary row", "普通的一行"),
        "question": say("the question quotes `<\\|YaYi\\|>`", "问题里引用了 `<\\|YaYi\\|>`"),
        "exchange": say("the question quotes a whole exchange", "问题里引用了一整段对话"),
        "answer": say("the answer quotes `<\\|End\\|>`", "回答里引用了 `<\\|End\\|>`"),
    }
    heads = [
        say("row", "数据行"),
        say("tokens of its answer", "回答的 token 数"),
        say("supervised, searched", "监督 token，搜索"),
        say("supervised, built", "监督 token，构造"),
        say("control tokens, searched", "控制符，搜索"),
        say("control tokens, built", "控制符，构造"),
    ]
    keys = ("of the answer", "searched", "built", "searched, control tokens", "built, control tokens")
    rows = [[names[line["row"]], *(str(line[key]) for key in keys)] for line in found["rows"]]
    ratio, low, high = found["ratio"]
    speeds = found["rows a second"]
    return [
        *table(heads, rows),
        "",
        say(
            f"Encoding, measured in turns: {speeds['plainly']:,} rows a second with the search, "
            f"{speeds['ours']:,} built; {ratio:.1f} times as fast ({low:.1f} to {high:.1f}).",
            f"编码速度（交替测量）：搜索每秒 {speeds['plainly']:,} 行，构造每秒 {speeds['ours']:,} 行，"
            f"是前者的 {ratio:.1f} 倍（{low:.1f} 到 {high:.1f}）。",
        ),
    ]


def of_head(found: dict[str, Any], say: Say) -> list[str]:
    heads = [
        say("base", "基座"),
        say("vocabulary", "词表"),
        say("hidden", "隐藏维度"),
        say("weights in blocks, M", "各层权重，百万"),
        say("GFLOP, padded", "GFLOP，填充"),
        say("GFLOP, packed", "GFLOP，打包"),
        say("quotient", "比值"),
        say("logits, padded, GB", "logits，填充，GB"),
        say("logits, packed, GB", "logits，打包，GB"),
    ]
    rows = [
        [
            name,
            f"{base['vocabulary']:,}",
            f"{base['hidden']:,}",
            f"{base['blocks'] / 1e6:.0f}",
            f"{base['padded FLOPs'] / 1e9:,.0f}",
            f"{base['packed FLOPs'] / 1e9:,.0f}",
            f"{base['padded FLOPs'] / base['packed FLOPs']:.2f}",
            gigabytes(base["padded logits"]),
            gigabytes(base["packed logits"]),
        ]
        for name, base in found["bases"].items()
    ]
    about = say(
        f"Computed, for {found['tokens']:,} tokens, {found['supervised']:,} of them supervised, "
        f"{found['padded']:,} when padded; logits in float32.",
        f"计算所得：{found['tokens']:,} 个 token，其中 {found['supervised']:,} 个受监督，填充后 "
        f"{found['padded']:,} 个；logits 为 float32。",
    )
    return [*table(heads, rows), "", about]


def times_padded(ways: dict[str, dict[str, float]], line: dict[str, float]) -> str:
    """How many times as many tokens a second as the padded way has; the seconds are printed less exactly."""
    if "plain" not in ways:
        return "–"
    return f"{line['tokens a second'] / ways['plain']['tokens a second']:.2f} x"


def of_train_step(found: list[dict[str, Any]], say: Say) -> list[str]:
    ways = {
        "trl": "TRL",
        "plain": say("transformers, padded", "transformers，填充"),
        "ours": say("this repository", "本项目"),
    }
    heads = [
        say("base", "基座"),
        say("way", "方式"),
        say("s a step", "每步秒数"),
        say("useful tokens/s", "有效 token/秒"),
        say("against padded", "与填充相比"),
        say("peak GB", "峰值 GB"),
        say("of the GEMM bound", "占 GEMM 上限"),
        say("loss", "损失"),
    ]
    rows = [
        [
            f"{one['base']}, {one['dtype']}",
            ways[way],
            f"{line['seconds']:.3g}",
            f"{line['tokens a second']:,.1f}",
            times_padded(one["ways"], line),
            f"{line['peak GB']:.2f}",
            percent(line["of bound"]),
            f"{line['loss']:.4f}",
        ]
        for one in found
        for way, line in one["ways"].items()
    ]
    sizes = dict.fromkeys((one["examples"], one["tokens"], one["supervised"], one["padded"]) for one in found)
    about = [
        say(
            f"{examples} examples, {tokens:,} tokens, {supervised:,} of them supervised, {padded:,} padded.",
            f"{examples} 条样本，{tokens:,} 个 token，其中 {supervised:,} 个受监督，填充后 {padded:,} 个。",
        )
        for examples, tokens, supervised, padded in sizes
    ]
    return [*table(heads, rows, left=2), "", " ".join(about)]


def of_whole_step(found: dict[str, dict[str, Any]], say: Say) -> list[str]:
    ways = {
        "plain": say("transformers' Trainer, padded", "transformers 的 Trainer，填充"),
        "ours": say("this repository", "本项目"),
        "ours, LoRA 16": say("this repository, `--lora-rank 16`", "本项目，`--lora-rank 16`"),
    }
    memories = {"given back": say("given back", "归还"), "kept": say("kept", "留用")}
    heads = [
        say("way", "方式"),
        say("freed memory is", "释放的内存"),
        say("s a step", "每步秒数"),
        say("useful tokens/s", "有效 token/秒"),
        say("peak GB", "峰值 GB"),
    ]
    rows = [
        [
            ways[way], memories[memory], f"{line['seconds']:.3g}", f"{line['tokens a second']:.1f}",
            f"{line['peak GB']:.2f}",
        ]
        for way in ways
        for memory, lines in found.items()
        for line in [lines[way]]
    ]  # fmt: skip
    return table(heads, rows, left=2)


def of_generate(found: dict[str, Any], say: Say) -> list[str]:
    names = {"plain": "transformers", "ours": say("this repository", "本项目")}
    heads = [
        say("way", "方式"),
        say("tokens/s, one prompt", "单个提示，token/秒"),
        say("of the bound", "占上限"),
        say("tokens/s, 8 prompts", "8 个提示，token/秒"),
        say("s to the first token", "到首个 token 的秒数"),
    ]
    rows = [
        [
            names[name], f"{way['alone']:.1f}", percent(way["of bound"]), f"{way['of 8']:.1f}",
            f"{way['first']:.2f}",
        ]
        for name, way in found["ways"].items()
    ]  # fmt: skip
    equal, of = found["equal"]
    first, tenth, tokens = found["turn 1"], found["turn 10"], found["tokens of turn 10"]
    about = say(
        f"{equal} of {of} tokens of both are equal. In a dialogue with ours, the first turn took "
        f"{first:.2f} s to its first token, and the tenth, of {tokens:,} tokens, {tenth:.2f} s.",
        f"两者的 {of} 个 token 中有 {equal} 个相同。用本项目对话时，第一轮到首个 token 用了 {first:.2f} 秒；"
        f"第十轮的提示有 {tokens:,} 个 token，用了 {tenth:.2f} 秒。",
    )
    return [*table(heads, rows), "", about]


def of_plan(found: list[dict[str, Any]], say: Say) -> list[str]:
    heads = [
        say("weights", "参数量"),
        say("way", "方式"),
        say("planned, GB", "预估，GB"),
        say("measured, GB", "实测，GB"),
        say("planned / measured", "预估 / 实测"),
    ]
    rows = [
        [
            line["weights"],
            line["way"].replace("all weights", say("all weights", "全部权重")).replace(", ", say(", ", "，")),
            f"{line['planned']:.2f}",
            f"{line['measured']:.2f}",
            f"{line['planned'] / line['measured']:.2f}",
        ]
        for line in found
    ]
    return table(heads, rows, left=2)


def of_survival(found: dict[str, Any], say: Say) -> list[str]:
    heads = [
        say("what was done to a run of two ranks", "对两个进程的训练做了什么"),
        say("how often", "次数"),
        say("steps", "总步数"),
        say("losses of all steps", "各步损失"),
    ]
    same = say("the uninterrupted run's, to the last printed digit", "与未中断的训练相同，到最后一位打印数字")
    kills = say(
        f"killed by SIGKILL, {found['in a save']} times during a save",
        f"SIGKILL 杀死，其中 {found['in a save']} 次正在保存",
    )
    signals = say("asked to stop by a signal, to one rank or both", "用信号请求停止，发给一个或两个进程")
    rows = [
        [kills, str(found["kills"]), str(found["steps"]), same],
        [signals, str(found["signals"]), str(found["steps"]), same],
    ]
    return table(heads, rows)


def of_vocabulary(found: dict[str, Any], say: Say) -> list[str]:
    heads = [
        say("texts", "文本"),
        say("tokenizer", "分词器"),
        say("new tokens", "新增 token"),
        say("held-out tokens", "留出文本的 token 数"),
        say("fewer", "减少"),
        say("characters per token", "每 token 字符数"),
    ]
    rows = []
    for line in found["savings"]:
        before = next(
            one["tokens"]
            for one in found["savings"]
            if (one["corpus"], one["tokenizer"]) == (line["corpus"], line["tokenizer"])
        )
        rows.append([
            line["corpus"],
            line["tokenizer"],
            f"{line['pieces']:,}",
            f"{line['tokens']:,}",
            f"{1 - line['tokens'] / before:.1%}",
            f"{line['characters'] / line['tokens']:.3f}",
        ])  # fmt: skip
    losses = found["losses"]
    about = say(
        f"Loss of held-out answers of the samples after {found['steps']} steps of the tiny Bloom, in nats a "
        f"character: {losses['as it is']:.4f} as it is, {losses['extended']:.4f} with 300 more tokens.",
        f"微型 Bloom 在样例上训练 {found['steps']} 步后，留出回答每字符的损失（nat）：原样 "
        f"{losses['as it is']:.4f}，多 300 个 token {losses['extended']:.4f}。",
    )
    return [*table(heads, rows, left=2), "", about]


def of_raters(found: list[dict[str, float]], say: Say) -> list[str]:
    heads = [
        say("questions", "题数"),
        say("alpha", "alpha"),
        say("alpha of dice", "掷骰子的 alpha"),
        say("0.4 apart: separated", "相差 0.4：能区分"),
        say("0.1 apart: separated", "相差 0.1：能区分"),
        say("0.1 apart: ranked the wrong way round", "相差 0.1：排名颠倒"),
    ]
    rows = [
        [
            f"{line['questions']:.0f}",
            f"{line['alpha']:.2f}",
            f"{round(line['alpha, random'], 2) + 0:.2f}",
            *(percent(line[name]) for name in ("apart, far", "apart, near", "out of order")),
        ]
        for line in found
    ]
    return table(heads, rows, left=0)


def of_evaluation(found: list[dict[str, Any]], say: Say) -> list[str]:
    names = {
        "generated": say("generated", "生成"),
        "generated or guessed": say("generated or guessed", "生成，读不出则猜"),
        "letter": say("letter", "选项字母"),
        "option": say("option", "选项全文"),
        "option per token": say("option per token", "选项全文，按 token 平均"),
    }
    heads = [
        say("model", "模型"),
        say("way", "方式"),
        say("accuracy, 95 % interval", "准确率，95 % 区间"),
        say("over all rotations", "所有轮换的平均"),
        say("most chosen letter", "选得最多的字母"),
        say("one option in all orders", "各种顺序都选同一项"),
    ]
    rows = []
    for result in found:
        for way, figures in result["ways"].items():
            overall = figures["overall"]
            low, high = overall["interval"]
            turns = figures["rotations"]
            letter, share = max(figures["letters"].items(), key=lambda item: item[1])
            rows.append([
                say("random", "随机权重") if result["model"] == "random" else result["model"],
                names[way],
                f"{overall['accuracy']:.0%} [{low:.0%}, {high:.0%}]",
                percent(sum(turn["right"] for turn in turns) / sum(turn["asked"] for turn in turns)),
                f"{letter} {share:.0%}" if share else "–",
                percent(figures["same_option_in_all"]),
            ])  # fmt: skip
    unread = say(", ", "，").join(
        f"{say('random', '随机权重') if one['model'] == 'random' else one['model']} {one['unread']:.0%}"
        for one in found
    )
    about = say(
        f"{found[0]['asked']} questions; a guess among the options is right in {found[0]['chance']:.1%}. "
        f"Generated answers that could not be read: {unread}.",
        f"{found[0]['asked']} 道题；在选项中乱猜的正确率为 {found[0]['chance']:.1%}。"
        f"读不出选项的生成回答：{unread}。",
    )
    return [*table(heads, rows, left=2), "", about]


def of_new_rows(found: list[dict[str, Any]], say: Say) -> list[str]:
    starts = {
        "mean": say("the mean of all rows", "所有行的平均"),
        "eos": say("the end-of-sequence row", "序列结束符的行"),
    }
    heads = [
        say("`<\\|End\\|>` starts as", "`<\\|End\\|>` 的起点"),
        "`--lr`",
        say("loss of `<\\|End\\|>`, before", "`<\\|End\\|>` 的损失，训练前"),
        say("after", "训练后"),
        say("held-out loss, before", "留出损失，训练前"),
        say("after", "训练后"),
        say("answers that ended", "能结束的回答"),
    ]
    rows = [
        [
            starts[line["start"]],
            f"{line['lr']:g}",
            *(f"{line[name]:.2f}" for name in ("end before", "end after", "all before", "all after")),
            f"{line['ended']:.0f}%",
        ]
        for line in found
    ]
    return table(heads, rows)


def of_card_check(found: dict[str, Any], say: Say) -> list[str]:
    """A line for each part, and below it all figures with a unit."""
    heads = [
        say("part", "部分"),
        say("outcome", "结果"),
        say("bounds that hold", "成立的界"),
        say("seconds", "秒"),
    ]
    rows, judged = [], []
    for part in found["parts"]:
        of_part = [row for row in part["rows"] if row["verdict"] in (HOLDS, FAILS)]
        held = sum(row["verdict"] == HOLDS for row in of_part)
        judged += of_part
        rows.append([
            f"{part['number']}. {part['title']}",
            part["outcome"] + (f": {part['reason']}" if part["reason"] else ""),
            say(f"{held} of {len(of_part)}", f"{held} / {len(of_part)}"),
            f"{part['seconds']:.0f}",
        ])  # fmt: skip
    failing = [row["what"] for row in judged if row["verdict"] == FAILS]
    verdict = say(
        f"All {len(judged)} bounds hold." if not failing else f"Bounds that fail: {'; '.join(failing)}.",
        f"全部 {len(judged)} 个界成立。" if not failing else f"不成立的界：{'；'.join(failing)}。",
    )
    figures = [
        [
            row["what"].replace("|", "\\|"),
            f"{short(row['value'])} {row['unit']}",
            row["bound"],
            row["verdict"],
            row["note"].replace("|", "\\|"),
        ]
        for part in found["parts"]
        for row in part["rows"]
        if row["unit"] and isinstance(row["value"], int | float)
    ]
    details = [
        say("what", "项目"),
        say("value", "数值"),
        say("bound", "界"),
        say("verdict", "判定"),
        say("note", "备注"),
    ]
    return [
        *table(heads, rows, left=2), "", verdict, "",
        f"<details><summary>{say('All figures', '全部数值')}</summary>", "",
        *table(details, figures, left=len(details)), "", "</details>",
    ]  # fmt: skip


# What is written beside the pictures.
CAPTIONS = {
    "alibi": ("The error of the bias by position, with its bounds", "偏置的误差随位置的变化及其上界"),
    "bf16": ("The error of the logits by position", "logits 的误差随位置的变化"),
    "attention": ("Seconds and memory of three ways to have ALiBi", "三种实现 ALiBi 的方式的时间与内存"),
    "train_step": ("Speed and memory as multiples of the padded way", "速度与内存，以填充方式为 1"),
    "vocabulary": ("Tokens that new tokens save, by their number", "新增 token 省下的 token，随其个数的变化"),
}

TABLES: dict[str, Callable[[Any, Say], list[str]]] = {
    "alibi": of_alibi,
    "bf16": of_bf16,
    "attention": of_attention,
    "labels": of_labels,
    "head": of_head,
    "train_step": of_train_step,
    "train_step_float32": of_train_step,
    "train_step_bf16": of_train_step,
    "train_step_card": of_train_step,
    "whole_step": of_whole_step,
    "generate": of_generate,
    "plan": of_plan,
    "survival": of_survival,
    "vocabulary": of_vocabulary,
    "raters": of_raters,
    "evaluation": of_evaluation,
    "new_rows": of_new_rows,
    "card_check": of_card_check,
}
