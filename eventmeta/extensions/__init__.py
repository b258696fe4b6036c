"""One module for each optional dependency.

progress_bar  a progress bar, with rich
"""
