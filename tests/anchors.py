"""What a link into a Markdown page can name."""

import re


def anchors(page: str) -> list[str]:
    """The page's headings, as GitHub names them, and its own anchors."""
    text = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return [
        *(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings),
        *re.findall(r'<a id="([^"]+)">', text),
    ]
