"""What the web page says, in English and in Chinese; the browser's language decides."""

import html

TITLE = "雅意 YaYi"

# key: (English, Chinese). The keys are global in gradio, which has texts of its own.
TEXTS = {
    "yayi_hello": ("What would you like to know?", "有什么可以帮你？"),
    "yayi_say": ("Say something", "说点什么"),
    "yayi_new": ("New conversation", "新对话"),
    "yayi_delete": ("Delete", "删除"),
    "yayi_conversations": ("Kept in this browser", "保存在此浏览器中"),
    "yayi_settings": ("Settings", "设置"),
    "yayi_preset": ("Who answers", "角色"),
    "yayi_system": ("System", "系统设定"),
    "yayi_system_empty": ("Empty: the intro that training used", "留空则使用训练时的介绍"),
    "yayi_max_new_tokens": ("Longest answer, in tokens", "最长回答（token）"),
    "yayi_temperature": ("Temperature", "温度"),
    "yayi_top_p": ("Top-p", "Top-p"),
    "yayi_repetition_penalty": ("Repetition penalty", "重复惩罚"),
    "yayi_left_out": (
        "The dialogue is too long: the model no longer reads its {count} oldest turn(s)",
        "对话过长，模型不再读取最早的 {count} 轮",
    ),
    "yayi_cut_off": ("The answer was cut off at {tokens} tokens", "回答过长，在 {tokens} 个 token 处截断"),
    "yayi_empty": (
        "The model gave an empty answer; try again, or ask in other words",
        "模型的回答是空的；请重试，或换一种问法",
    ),
    "yayi_goes_on": (
        "The model goes on calling tools, and its last calls were not run",
        "模型一直在调用工具，最后的调用没有执行",
    ),
    "yayi_results_too_long": (
        "The results of the calls are longer than what the model can read",
        "调用的结果过长，模型读不完",
    ),
    "yayi_calls_left_out": (
        "Without {count} call(s) that no row can hold",
        "其中 {count} 次无法写成数据行的调用没有写入",
    ),
    "yayi_failed": ("The answer failed: {error}", "回答出错：{error}"),
    "yayi_no_number": ("{name} is not a number", "{name} 不是数字"),
    "yayi_written": ("Thank you; written into the feedback file", "谢谢，已写入反馈文件"),
    "yayi_taken_back": ("Taken out of the feedback file", "已从反馈文件中删去"),
    "yayi_not_written": ("The feedback was not written: {error}", "反馈没有写入：{error}"),
    "yayi_rated": (
        "That was said already, and is in the feedback file",
        "该回答已经评价过，评价已在反馈文件中",
    ),
    "yayi_blank": ("A message cannot be empty; it stays as it was", "消息不能为空，保持原样"),
    "yayi_forgotten": (
        "The browser's storage is full: the {count} oldest conversation(s) were deleted",
        "浏览器的存储空间已满，已删除最早的 {count} 个对话",
    ),
    "yayi_not_kept": (
        "The browser does not keep this conversation: its storage is full or switched off",
        "浏览器没有保存此对话：存储空间已满或被禁用",
    ),
}


def translations() -> dict[str, dict[str, str]]:
    """The texts as gr.I18n takes them: {language: {key: text}}."""
    english, chinese = ({key: texts[index] for key, texts in TEXTS.items()} for index in (0, 1))
    return {"en": english, "zh": chinese, "zh-CN": chinese, "zh-TW": chinese}


def text_for(accept_language: str, key: str, **parts: object) -> str:
    """A text for a note, as HTML: with its parts filled in, and escaped.

    accept_language: the browser's header, such as "zh-CN,zh;q=0.9,en;q=0.8"; its first language counts.
    """
    english, chinese = TEXTS[key]
    text = chinese if accept_language.strip().lower().startswith("zh") else english
    return html.escape(text.format(**parts))
