"""One page that explains a run: a single HTML file that needs no network.

`write_page` gathers what a run folder holds into sections and renders them. Every section stands by
itself: what a run does not have is said with the command that makes it, and nothing else is lost.
"""

from vae_astro.report.page.write import PageOptions, options_from, page_after_run, write_page

__all__ = ["PageOptions", "options_from", "page_after_run", "write_page"]
