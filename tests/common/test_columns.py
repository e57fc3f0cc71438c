import pytest

from training.common.columns import parse_columns


def test_each_part_has_a_column_of_its_own() -> None:
    columns = parse_columns(r"question=a\,b, answer=c\=d")
    assert (columns, str(columns)) == ({"question": "a,b", "answer": "c=d"}, r"question=a\,b,answer=c\=d")
    for text, problem in (
        ("question=a,answer=a", "the column a stands there twice; a column holds one part"),
        ("question=a,question=b", "question stands there twice"),
        ("answer=a", "answer=a: no column for the question"),
        ("query=a", "query=a: not PART=COLUMN, the part being one of instruction, question, input, answer"),
    ):
        with pytest.raises(ValueError, match=f"^{problem}"):
            parse_columns(text)
