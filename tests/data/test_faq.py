"""A Markdown file of questions: which lines are whose answer, and which are nobody's."""

from pathlib import Path

import pytest

from training.common.errors import UserError
from training.data.faq import read_faq

FAQ = """\
# 业务问题

前言一行。

## 什么是存款保险？

由存款保险机构偿付。

### 限额

```bash
# 不是标题
## 也不是
```

~~~
``` ## 在里面
## 也在里面
~~~
最后一行。

##没有空格 ##

    答案

#### 更深

# 下一部分

不属于任何问题。

## 没有答案
"""

ROWS = [
    (5, "什么是存款保险？", FAQ.split("存款保险？\n\n")[1].split("\n\n##没有")[0]),
    (22, "没有空格", "    答案\n\n#### 更深"),
    (32, "没有答案", ""),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_each_second_heading_is_a_question(tmp_path: Path, capsys, encoding: str, newline: str) -> None:
    path = tmp_path / "faq.md"
    path.write_bytes(FAQ.replace("\n", newline).encode(encoding))
    rows = [(number, row["question"], row["answer"]) for number, row in read_faq(str(path))]
    assert rows == ROWS
    said = f"{path}: 2 lines are below no ## heading, and in no row\n"
    if encoding == "gb18030":
        said = f"{path}: not UTF-8, and read as GB18030\n" + said
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"# title\n\ntext\n", ": no question; each is a heading of its own"),
        (b"", ": no question"),
        (b"## \xff\xff\n", ": neither UTF-8"),
        (None, ": No such file or directory"),
    ],
)
def test_a_file_without_a_question_is_one_line(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "faq.md"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError) as error:
        list(read_faq(str(path)))
    assert str(error.value).startswith(f"{path}{message}")
