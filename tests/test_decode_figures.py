"""The plots of decoding times are what follows from the kept results."""

from xml.etree import ElementTree

from benchmarks import decode_figures


def test_the_plots_are_those_of_the_kept_results():
    kept = {path.name: path.read_text() for path in decode_figures.FIGURES.glob("*.svg")}
    assert kept == decode_figures.figures(), "python -m benchmarks.decode_figures rewrites them"


def test_a_plot_stands_alone_and_shows_the_fastest_implementation(tmp_path):
    others = ["dense,{},,1,5.0,1.0,0", "moe,{},grouped_mm,1,9.0,2.0,0", "moe,{},batched_mm,1,7.5,2.0,0"]
    rows = [row.format("plain") for row in [*others, "ultramem,{},,1,6.0,1.0,16"]]
    alone = ["dense,fused,,1,0.3,0.2,0", "ultramem,fused,,1,0.4,0.2,16"]  # no experts with this trunk
    head = "model,trunk,experts,batch,step_ms,floor_ms,table_rows"
    (tmp_path / "decode.csv").write_text("\n".join([head, *rows, *alone]))
    (tmp_path / "decode_table.csv").write_text("\n".join([head, "x1,plain,,1,5.5,1.5,4", "x4,plain,,1,5.6,1.6,16"]))
    decode_figures.write(tmp_path / "plots", tmp_path)
    batch, table = (tmp_path / "plots" / f"time_against_{what}.svg" for what in ("batch", "table"))
    for path in (batch, table):
        assert ElementTree.fromstring(path.read_text()).tag == "{http://www.w3.org/2000/svg}svg"
    assert "moe: 7.5" in batch.read_text()
    assert "ultramem: 6<" in batch.read_text(), "a trunk that not all were measured with is no comparison"
    assert "ultramem: 5.6" in table.read_text()
    assert "dense: 5<" in table.read_text()
