"""Word lists of the rules: closed classes whole, open ones as far as captions commonly need them."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COUNTS = _words(
    """
    one two three four five six seven eight nine ten eleven twelve dozen dozens hundred hundreds several
    many few both multiple pair couple trio single half numerous
    """
)

RELATIONS = _words(
    """
    on in at under underneath beneath below above over behind beside besides between among amongst inside
    outside near by around through across along against into onto within off toward towards past down up
    atop upon with without from beyond opposite amid alongside
    """
)

RELATION_PHRASES = tuple(
    tuple(phrase.split())
    for phrase in (
        "in front of",
        "on top of",
        "on the top of",
        "on the left side of",
        "on the right side of",
        "on the other side of",
        "on the left of",
        "on the right of",
        "to the left of",
        "to the right of",
        "on the side of",
        "on the edge of",
        "at the edge of",
        "in the middle of",
        "in between",
        "at the end of",
        "on the back of",
        "in the back of",
        "next to",
        "close to",
        "near to",
        "out of",
        "left of",
        "right of",
        "ahead of",
        "along with",
        "together with",
        "surrounded by",
        "covered with",
        "covered in",
        "filled with",
        "full of",
        "attached to",
        "made of",
    )
)

STOP = (
    _words(
        """
    a an the this that these those some any all each every another other others no not it its he him his she
    her they them their theirs we us our you your i me my who whom whose which what where when while as than
    then there here so too very also just only more most less least much same such and or but nor if of to
    for is are was were be been being am has have had having do does did doing can could will would shall
    should may might must get gets getting got out about like both either neither exactly nearly almost
    really own again please find show give want need retrieve search look looking looks image images picture
    pictures photo photos photograph photographs instead make change replace add remove keep let something
    someone somebody everything anything nothing thing things with's one's it's
    """
    )
    - COUNTS
)

ATTRIBUTES = _words(
    """
    red orange yellow green blue purple violet pink brown black white gray grey beige tan golden gold silver
    dark light bright pale colorful colourful multicolored colored coloured maroon turquoise teal navy big
    large huge giant enormous small little tiny miniature tall short long wide narrow thick thin deep high
    low fat slim heavy round square rectangular circular triangular oval curved straight flat pointy sharp
    striped dotted plaid checkered spotted patterned floral plain solid shiny glossy matte transparent clear
    blurry fuzzy fluffy furry hairy smooth rough soft hard wet dry dirty clean dusty muddy snowy sandy
    grassy rocky rainy sunny cloudy foggy icy wooden metal metallic plastic glass leather stone concrete
    paper ceramic brick cotton woolen silk denim steel iron rubber marble old new young elderly adult modern
    vintage antique ancient fresh ripe raw frozen hot cold warm cool empty full open closed broken whole
    half-eaten upside-down beautiful pretty cute ugly nice elegant fancy simple happy sad angry sleepy lazy
    busy crowded quiet lonely calm wild tame sick male female asian american european delicious tasty sweet
    spicy sour healthy professional domestic rural urban residential commercial public private outdoor
    indoor front rear left right upper lower top bottom middle different various similar assorted mixed bare
    naked bald blond blonde curly long-sleeved sleeveless short-sleeved loose tight stuffed vegetarian
    electric electronic digital double triple tropical lush bushy leafy strange odd lit unlit messy neat
    tidy alone medium overhead stainless grown foreign wood dirt burnt older younger larger bigger smaller
    taller unique rusty ornate curvy
    """
)

# Base forms; their -s, -ed and -ing come by rule, and irregular forms stand below.
VERBS = _words(
    """
    sit stand lie lay run walk ride drive fly jump swim eat drink hold carry wear play throw catch kick hit
    swing look watch stare smile laugh cry talk speak sleep rest lean hang climb fall slide ski skate surf
    sail float dive cook bake cut slice chop wash brush clean pull push lift reach touch point wave hug kiss
    pet feed graze chase bite lick chew read write draw paint type pose perform celebrate gather wait cross
    travel move turn stop park land race pass serve prepare grill pour mix stir sniff bark perch crouch
    kneel bend stretch shake dance sing work build fix ramble roam wander approach follow lead herd display
    contain include feature face cover surround fill top decorate dress equip attach mount tie stack pile
    line load seat
    """
)

ACTIONS = _words(
    """
    sat stood lay lies lying ran ridden rode driven drove flew flown swam ate eaten drank drunk held wore
    worn threw thrown caught slept hung fell slid cut fed bit read wrote written drew drawn led bent shook
    sang built upside sits wearing
    """
) - {"upside"}

# Words in -ing and -ed that name a thing, or are no verb's form.
NOT_VERBS = _words(
    """
    building buildings ceiling ceilings clothing king ring rings string strings spring evening morning
    wedding wing wings railing railings dressing frosting icing pudding painting paintings dining living
    parking crossing intersection swimming bowling sewing washing shopping thing things during dumpling
    dumplings awning awnings earring earrings sling landing lighting topping toppings filling stuffing
    bedding seating siding tubing fencing king-sized bed beds shed sled seed seeds weed weeds speed feed
    reed steed breed red
    """
)

ADJECTIVE_ENDINGS = ("ful", "less", "ous", "ish", "shaped", "colored", "coloured", "sized", "sleeved")
