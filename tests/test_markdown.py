"""Names in the Markdown files stay names."""

from __future__ import annotations

from elva.markdown import escaped, markdown_table


def test_a_name_holds_no_html_no_cell_and_no_line() -> None:
    assert escaped("<img src=x> & a|b\nc") == "&lt;img src=x> &amp; a\\|b c"


def test_a_name_is_no_link_picture_code_or_emphasis() -> None:
    assert escaped("![x](http://a) `b` *c* d_e \\") == r"!\[x\](http://a) \`b\` \*c\* d_e \\"


def test_a_table_of_words_and_numbers() -> None:
    assert markdown_table(("a|b", "n"), [["<b>", "1"]]) == "| a\\|b | n |\n| --- | ---: |\n| &lt;b> | 1 |"
    assert markdown_table(("a", "b", "n"), [], words=2) == "| a | b | n |\n| --- | --- | ---: |"
