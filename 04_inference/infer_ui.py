"""The app: chat, compare stages, correct golden data, watch training, read the report.

Reads:   what the numbered scripts write: models/, adapters_*/, data/<document>/, results/
Command: 04_inference/run_ui.sh, or streamlit run 04_inference/infer_ui.py
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (str(HERE), str(HERE.parent)):
    if folder not in sys.path:
        sys.path.insert(0, folder)  # run without installing
import streamlit as st
from tabs import this_tab

import injection  # noqa: F401  loads the fast BLAS before mlx

# As SVG text: a :material/: page icon would be fetched from a font server.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="#0f6b5c">'
    '<path d="M3 3h18v13H9l-6 5z"/></svg>'
)
# One colour that can be read on a light and on a dark page.
LOGO = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 190 24" fill="#2b8f7d">'
    '<path d="M2 4h16v12H8l-6 5z"/><text x="28" y="17" font-size="16" font-weight="600" '
    'font-family="Source Serif, Georgia, serif">document-injection</text></svg>'
)
# Questions as headings and answers as text below them, instead of bubbles with avatars.
STYLE = """<style>
[data-testid="stChatMessage"] { background: none; padding: 0; gap: 0; }
[data-testid^="stChatMessageAvatar"] { display: none; }
[aria-label="Chat message from user"] { margin-top: 1rem; }
[aria-label="Chat message from user"] :is([data-testid="stText"], [data-testid="stText"] *) {
  font-family: "Source Serif", "Noto Serif CJK KR", serif; font-weight: 600; font-size: 1.15rem;
}
</style>"""
VIEWS = ("Chat", "Compare", "Golden data", "Training", "Report")

pages = [st.Page(HERE / "views" / f"{title.split()[0].lower()}.py", title=title) for title in VIEWS]
page = st.navigation(pages, position="top")
layout = "centered" if page.title == "Chat" else "wide"
st.set_page_config(page_title="document-injection", page_icon=ICON, layout=layout)
st.logo(LOGO)
st.html(STYLE)
# A link to another view drops ?tab= from the address. A reload needs it, in every view.
this_tab()
page.run()
