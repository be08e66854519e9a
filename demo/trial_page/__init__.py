"""The page of demo/app.py: models, uploads, pictures, HTML, and last of all Gradio."""
