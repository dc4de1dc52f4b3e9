from isda.report.markup import Html, details, join, table, tag


def test_text_is_escaped_and_html_is_not():
    assert tag("p", "a < b & c", tag("b", '"')) == "<p>a &lt; b &amp; c<b>&quot;</b></p>"
    assert tag("a", "x", href='"><script>') == '<a href="&quot;&gt;&lt;script&gt;">x</a>'
    assert join(["<", Html("<br/>"), None, 3]) == "&lt;<br/>3"


def test_attributes_are_named_as_in_html():
    written = tag("rect", class_="a", stroke_width=2, hidden=None)
    assert written == '<rect class="a" stroke-width="2"/>'


def test_cells_and_summaries_are_escaped():
    written = table(["<i>"], [["<b>"], [tag("code", "<")]])
    assert "<i>" not in written and "<b>" not in written and "<code>&lt;</code>" in written
    assert details("<i>", "x") == "<details><summary>&lt;i&gt;</summary>x</details>"
    assert details("s", opened=True).startswith('<details open="open">')
