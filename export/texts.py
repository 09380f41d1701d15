"""Texts that every artifact is verified with. No quantization is fitted to any of them."""

from __future__ import annotations

import unicodedata

ORDINARY = (
    "vitamin d",
    "iron rich foods",
    "how long does jet lag last",
    "Is it safe to take ibuprofen and paracetamol together?",
    "What is the difference between a cold and the flu?",
    "symptoms of dehydration in older adults",
    "The patient was discharged on the third day without complications.",
    "Adults need between seven and nine hours of sleep a night, yet a third of them report sleeping less than six.",
    "A randomised trial of 412 participants found no effect of the supplement on bone density after two years.",
    "Wash the wound with clean water, cover it with a sterile dressing and see a doctor if it turns red or warm.",
    "Ein Satz auf Deutsch, damit auch Umlaute wie ä, ö und ü vorkommen.",
    "cheap flights lisbon",
    "how to undo the last git commit",
    "python list comprehension with two loops",
    "def add(a: int, b: int) -> int:\n    return a + b",
    "SELECT name, COUNT(*) FROM orders WHERE total > 100 GROUP BY name ORDER BY 2 DESC;",
    '{"id": 17, "tags": ["blue", "small"], "price": 3.99}',
    "error: cannot borrow `x` as mutable because it is also borrowed as immutable",
    "Connection reset by peer (104) while reading response header from upstream",
    "The train leaves platform four at 17:42 and arrives in Vienna a little before midnight.",
    "A man is playing the guitar on a bench in the park.",
    "Two dogs chase a ball across the wet grass.",
    "Nobody in the village could remember a winter with so little snow.",
    "The committee approved the budget by nine votes to four.",
    "Shares of the company fell 3.2% on Tuesday after it lowered its forecast for the year.",
    "Refunds are issued within 14 days of the date on which we receive the returned goods.",
    "This agreement shall be governed by the laws of the state in which the tenant resides.",
    "Please find attached the minutes of last week's meeting and the list of open questions.",
    "Hi team, the deploy is done, but the dashboard still shows the old numbers. Can someone look?",
    "Knead the dough for ten minutes, let it rest for an hour and bake it at 220 degrees until golden.",
    "The mitochondrion is the organelle in which most of a cell's ATP is produced.",
    "Light takes about eight minutes to travel from the Sun to the Earth.",
    "In 1687 Newton published the Principia, in which he stated the three laws of motion.",
    "The integral of 1/x from 1 to e is 1.",
    "not good",
    "good",
    "The film was not bad at all.",
    "The film was bad.",
    "best running shoes for flat feet under 100 dollars",
    "Replace the filter every three months, or sooner if the red light is on.",
    "password reset email not arriving",
    "Wie beantrage ich einen neuen Ausweis?",
    "¿Dónde está la estación de tren más cercana?",
    "La bibliothèque ferme à dix-huit heures le samedi.",
    "The quick brown fox jumps over the lazy dog. " * 8,
    "A reservoir stores the water that falls in spring for the dry months of late summer. Engineers decide each week how "
    "much of it to release: too little, and the turbines stand still; too much, and the farmers downstream have nothing "
    "left in September. Forecasts of rain and snow help, but they reach a few days ahead at best, so the rules that have "
    "grown over decades are cautious. A model that learns from the records of forty years can do better on average. "
    "Whether it does better in the one year that matters is a question that no average answers.",
)

LONG = "the history of medicine is also a history of error and of its slow correction " * 715  # 10,010 words

HOSTILE = (
    "",
    " ",
    "\t\n\r  \u00a0\u2003",
    "a",
    ".",
    "🙂",
    "👩‍👩‍👧‍👦 👍🏽 🇺🇳 ❤️‍🔥",
    "!?#$%&*()[]{}<>|\\/~^`'\"",
    "____________________",
    "1234567890 3.14159 -1e-9 0xDEADBEEF 1,000,000",
    "ΑΒΓ αβγ Ωμέγα",
    "Съешь же ещё этих мягких французских булок",
    "敏捷的棕色狐狸跳过懒狗。",
    "いろはにほへと ちりぬるを ｶﾀｶﾅ",
    "다람쥐 헌 쳇바퀴에 타고파",
    "صِف خَلقَ خَودٍ كَمِثلِ الشَمسِ",
    "דג סקרן שט בים מאוכזב",
    "ऋषियों को सताने वाले दुष्ट राक्षसों",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "left \u202eright to left override\u202c left",
    "e\u0301 n\u0303 o\u0308\u0304 Z\u0351\u036b\u0343a\u0363\u0366\u0328l\u0358g\u0321o\u0489",
    unicodedata.normalize("NFD", "Ünïcödé ñormalizátion"),
    "ﬁ ﬂ ½ ² ™ Ⅷ ｆｕｌｌ ｗｉｄｔｈ",
    "zero\u200bwidth\u200dspaces\ufeffand\u2060joiners",
    "\x00\x01\x02\x1b[31m\x7f\x85 control",
    "\ufffd\ufffd \ufffe \uffff \U0010ffff",
    "\ue000\uf8ff private use",
    "x" * 99,
    "x" * 101,
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "word " * 253,
    "word " * 254,
    "word " * 255,
    "[CLS] [SEP] [PAD] [MASK] [UNK] ##ing",
    "<script>alert('x')</script> ${jndi:ldap://x} '; DROP TABLE texts; --",
    "\\u0041 \\ud800 %00 &amp; \\n",
    LONG,
)
"""Texts that break naive code: empty, odd scripts, controls, lengths around the limits of 100 letters and 256 tokens."""

EXTREME = (
    "he nods",
    "She nods and smiles.",
    "nods " * 8,
    "playoff " * 10,
    "." * 250,
    "2 " * 200,
    "^ " * 254,
    "good morning " + "[PAD]" * 250,
)
"""Texts whose tokens drive single channels far beyond their usual range, so that an activation range fixed in advance
would cut them off."""

VERIFICATION_TEXTS = (*ORDINARY, *HOSTILE)
