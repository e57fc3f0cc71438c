"""Five tools for `python -m inference.chat --tools data/tools_example.py`; their figures are invented.

A tool is a function: its name, its annotations and its docstring are what the model is told of it.
"""

import datetime

RATES = {"美元": 7.12, "欧元": 7.74, "英镑": 9.05, "港元": 0.91, "日元": 0.048}

RISKS = {
    "金穗财富": {"原因": "承诺高息保本", "所在区": "滨河区"},
    "蓝杉公司": {"原因": "三笔贷款逾期", "所在区": "东岭区"},
    "恒远置业": {"原因": "挪用预售资金", "所在区": "云溪区"},
    "快易贷": {"原因": "暴力催收", "所在区": "梧桐区"},
}

OPINIONS = {
    "地铁晚点": {"正面": 12, "中性": 40, "负面": 148},
    "夜间图书馆": {"正面": 230, "中性": 35, "负面": 15},
    "垃圾分类": {"正面": 96, "中性": 120, "负面": 84},
    "滨河步道": {"正面": 175, "中性": 60, "负面": 25},
}

HOTLINES = {
    "滨河区": "8800-1101",
    "东岭区": "8800-1102",
    "云溪区": "8800-1103",
    "梧桐区": "8800-1104",
    "青禾区": "8800-1105",
}


def exchange_rate(currency: str) -> float:
    """查询一种外币兑人民币的汇率。

    Args:
        currency: 外币的中文名，如“美元”
    """
    return _found(RATES, currency, "汇率")


def date_after(start: str, days: int) -> str:
    """计算某一天之后若干天的日期和星期。

    Args:
        start: 起始日期，形如 2024-03-01
        days: 天数，负数表示之前
    """
    try:
        day = datetime.date.fromisoformat(start) + datetime.timedelta(days=days)
    except ValueError:
        raise ValueError(f"没有“{start}”这一天") from None
    return f"{day.year}年{day.month}月{day.day}日（星期{'一二三四五六日'[day.weekday()]}）"


def risk_list(company: str) -> dict:
    """查询一家公司是否在风险名单上。

    Args:
        company: 公司名称
    """
    return {"在名单上": company in RISKS, **RISKS.get(company, {})}


def opinion_counts(topic: str) -> dict:
    """查询一个话题下正面、中性和负面评论的条数。

    Args:
        topic: 话题
    """
    return _found(OPINIONS, topic, "评论")


def district_hotline(district: str) -> str:
    """查询一个区的便民热线号码。

    Args:
        district: 区名，如“滨河区”
    """
    return _found(HOTLINES, district, "热线")


def _found(table: dict, name: str, what: str):
    if name not in table:
        raise ValueError(f"没有“{name}”的{what}")
    return table[name]
