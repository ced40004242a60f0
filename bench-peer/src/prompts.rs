//! What is continued greedily. Written for this project; of different kinds, since a model is sure
//! of code and digits and unsure of prose.

/// Name and text of each prompt.
pub(crate) const PROMPTS: [(&str, &str); 4] = [
    (
        "prose",
        "The ferry left an hour late that evening, because the pilot would not sail until the fog \
         had lifted from the far bank. Most of the passengers slept on their bags. An old woman in \
         a green coat stood at the rail and",
    ),
    (
        "code",
        "def moving_average(values, window):\n    \"\"\"Return the mean of each run of `window` \
         consecutive values.\"\"\"\n    if window <= 0:\n        raise ValueError(\"window must be \
         positive\")\n    result = []\n",
    ),
    (
        "list",
        "Packing list for a week of walking in the hills:\n\n1. A waterproof jacket\n2. Two pairs \
         of boots\n3. A map and a compass\n4.",
    ),
    (
        "digits",
        "The squares of the whole numbers, one on each line:\n1 * 1 = 1\n2 * 2 = 4\n3 * 3 = 9\n\
         4 * 4 = 16\n5 * 5 =",
    ),
];
