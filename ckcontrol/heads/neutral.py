"""Plain English that asks for no fact: what a pruned model's perplexity is measured on.

Text only, written for this purpose. Replace it with text of your own domain where that matters more.
"""

from __future__ import annotations

__all__ = ["NEUTRAL"]

NEUTRAL = (
    "The kettle had just begun to whistle when she heard the gate. She set two cups on the table, wiped the crumbs "
    "from the cloth, and went to see who had come so early. It was only the neighbour's boy, holding a basket of "
    'plums and looking at his shoes. "Mother says they will not keep," he said.',
    "To repair a bicycle tyre, first take the wheel off and press the tyre away from the rim. Pull the tube out, pump "
    "it up a little and hold it under water until bubbles show where the hole is. Dry the place, roughen it with "
    "sandpaper, spread a thin layer of glue and wait until it is no longer wet before you press the patch on.",
    "We met on Tuesday to talk about the new timetable. Most of those present thought that the early shift should "
    "start half an hour later in winter, and nobody spoke against it. The question of who keeps the keys was put off "
    "until the next meeting, because two people who wanted to comment on it were ill.",
    "Clouds gathered over the hills during the afternoon, and by evening a steady rain was falling. The path along "
    "the river turned to mud, so the walkers took the road instead. They were tired, wet and rather cheerful, and "
    "they sang until the lights of the village came into view.",
    "A good list has one item to a line and no item twice. Before you write a function that removes duplicates, ask "
    "whether the order matters. If it does, keep a set of what you have seen and copy only what is not in it; if it "
    "does not, turn the list into a set and be done.",
    "Dear all, thank you for the parcels, which arrived safely although the paper had torn at one corner. The "
    "children wear the scarves every day. We hope to visit you when the days are longer and the trains run on time "
    "again. Until then we think of you often, especially on Sundays.",
)
