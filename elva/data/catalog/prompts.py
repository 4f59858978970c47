"""The instructions of a catalogue's tasks: four wordings for each pair of modalities."""

PROMPTS: dict[tuple[str, str], tuple[str, str, str, str]] = {
    ("text", "image"): (
        "Find a picture that fits the description.",
        "Which picture has all these attributes?",
        "Retrieve the image described here.",
        "Show a picture of what is described.",
    ),
    ("text", "text"): (
        "Find the text about the same thing.",
        "Which other text fits what is described?",
        "Retrieve a matching description.",
        "Match this text with another about the same thing.",
    ),
    ("text", "image,text"): (
        "Find a picture with its text that fits the description.",
        "Which labelled picture has all these attributes?",
        "Retrieve the image and text described here.",
        "Show an entry, picture and text, of what is described.",
    ),
    ("image", "text"): (
        "Find a caption that is true of this picture.",
        "Which text describes the picture?",
        "Retrieve a description of this image.",
        "What does this picture show?",
    ),
    ("image", "image"): (
        "Find another picture of the same.",
        "Which picture shows the same as this one?",
        "Retrieve an image that matches this image.",
        "Show the matching picture.",
    ),
    ("image,text", "text"): (
        "Find the answer to the question about this picture.",
        "Which text answers the question?",
        "Retrieve the answer from the image.",
        "Look at the picture and answer.",
    ),
    ("image,text", "image"): (
        "Find the picture that results from this change.",
        "Which picture is like this one with the change made?",
        "Retrieve the image after the modification.",
        "Show the picture changed as described.",
    ),
    ("image,text", "image,text"): (
        "Find the picture with its text that results from this change.",
        "Which labelled picture is like this one with the change made?",
        "Retrieve the image and text after the modification.",
        "Show the entry, picture and text, changed as described.",
    ),
}
