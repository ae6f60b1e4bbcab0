"""The app: chat with a base model and its adapters on this machine.

Reads:   models/*.yaml, models/<4-bit folder>, adapters_*/
Command: 04_inference/run_ui.sh, or streamlit run 04_inference/infer_ui.py
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (str(HERE), str(HERE.parent)):
    if folder not in sys.path:
        sys.path.insert(0, folder)  # run without installing
import streamlit as st
from views import chat  # imports injection, which loads the fast BLAS, before mlx

# As SVG text: a :material/: page icon would be fetched from a font server.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="#0f6b5c">'
    '<path d="M3 3h18v13H9l-6 5z"/></svg>'
)

st.set_page_config(page_title="Knowledge injection", page_icon=ICON)
st.navigation([st.Page(chat.page, title="Chat", default=True)]).run()
