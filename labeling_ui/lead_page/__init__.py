"""The lead's page: rounds and how they go, labelers, disputes, publishing, export, audit log.

Mounted at /lead, where the sign-in of a lead is needed to load anything. That alone would not
do: each handler asks again who calls (`wiring`), because a handler can be reached without the
page. `layout` says what is on the page, the desks what its buttons do, the views how it looks.
"""

from labeling_ui.lead_page.layout import lead_page
from labeling_ui.lead_page.words import I18N

__all__ = ["I18N", "lead_page"]
