"""Public facts for the study's tasks on a real model: words with their category, verbs with their past tense."""

CATEGORIES = {
    "animal": """
        dog cat horse cow pig sheep goat lion tiger leopard elephant giraffe zebra rhinoceros hippopotamus monkey
        gorilla wolf fox bear rabbit hare squirrel beaver otter badger hedgehog mouse rat hamster camel kangaroo koala
        deer moose""",
    "fruit": """
        apple pear banana cherry grape melon watermelon strawberry raspberry blueberry blackberry mango papaya
        pineapple apricot nectarine kiwi lemon lime grapefruit tangerine fig date pomegranate guava lychee cranberry
        currant gooseberry quince persimmon coconut cantaloupe mulberry kumquat""",
    "vegetable": """
        carrot potato onion garlic leek cabbage cauliflower broccoli spinach lettuce celery asparagus cucumber zucchini
        eggplant radish turnip parsnip beetroot artichoke pea kale fennel okra shallot rutabaga chard endive arugula
        watercress yam pumpkin courgette bean kohlrabi""",
    "tool": """
        hammer screwdriver wrench pliers saw drill chisel axe shovel rake hoe spade crowbar mallet sander file clamp
        vise hacksaw pickaxe trowel sickle scythe tweezers scissors sledgehammer anvil level spanner jack hatchet
        pitchfork soldering-iron chainsaw hand-plane""",
    "country": """
        France Germany Spain Portugal Italy Greece Norway Sweden Finland Denmark Poland Hungary Austria Switzerland
        Belgium Ireland Iceland Russia Ukraine Egypt Kenya Nigeria Morocco Ethiopia India Japan Vietnam Thailand
        Indonesia Australia Canada Mexico Brazil Argentina Peru""",
    "instrument": """
        piano violin viola cello flute clarinet oboe bassoon trumpet trombone tuba saxophone guitar banjo mandolin
        ukulele harp lute drum tambourine xylophone marimba accordion harmonica organ harpsichord bagpipes piccolo
        sitar lyre cymbals triangle bugle recorder fiddle""",
    "vehicle": """
        car bus truck train tram bicycle motorcycle scooter airplane helicopter ship boat ferry yacht canoe kayak
        submarine taxi van ambulance tractor bulldozer lorry trolley wagon carriage sled glider limousine minibus
        locomotive hovercraft moped jeep barge""",
    "clothing": """
        shirt trousers jeans skirt dress coat jacket sweater cardigan blouse vest suit tie scarf glove sock stocking
        hat cap shorts pajamas robe apron raincoat hoodie tunic kimono poncho belt mitten sandal boot slipper
        underwear overalls""",
    "profession": """
        doctor nurse teacher lawyer engineer architect carpenter plumber electrician mechanic baker butcher chef waiter
        farmer fisherman soldier pilot sailor journalist author painter sculptor musician actor dentist pharmacist
        surgeon accountant librarian secretary tailor barber judge firefighter""",
    "sport": """
        football basketball baseball volleyball tennis badminton golf cricket rugby hockey swimming rowing sailing
        boxing wrestling fencing judo karate gymnastics skiing snowboarding skating surfing cycling archery polo
        squash lacrosse softball handball bowling billiards triathlon diving weightlifting""",
    "flower": """
        tulip daisy lily orchid daffodil sunflower carnation chrysanthemum marigold peony poppy iris hyacinth crocus
        begonia geranium petunia dahlia magnolia jasmine lavender azalea hibiscus camellia gardenia lilac snapdragon
        zinnia pansy primrose foxglove snowdrop buttercup bluebell dandelion""",
    "colour": """
        red blue green yellow black white brown grey pink purple violet indigo turquoise crimson scarlet maroon beige
        ivory teal magenta cyan navy khaki amber burgundy azure fuchsia mauve ochre vermilion cerulean sepia taupe
        charcoal tan""",
}

IRREGULAR = """
be-was become-became begin-began bend-bent bite-bit blow-blew break-broke bring-brought build-built buy-bought
catch-caught choose-chose come-came creep-crept deal-dealt dig-dug do-did draw-drew drink-drank drive-drove eat-ate
fall-fell feed-fed feel-felt fight-fought find-found flee-fled fly-flew forget-forgot forgive-forgave freeze-froze
get-got give-gave go-went grow-grew hang-hung have-had hear-heard hide-hid hold-held keep-kept know-knew lead-led
leave-left lend-lent lose-lost make-made mean-meant meet-met pay-paid ride-rode ring-rang rise-rose run-ran say-said
see-saw seek-sought sell-sold send-sent shake-shook shine-shone shoot-shot shrink-shrank sing-sang sink-sank sit-sat
sleep-slept slide-slid speak-spoke spend-spent spin-spun stand-stood steal-stole stick-stuck sting-stung strike-struck
swear-swore sweep-swept swim-swam swing-swung take-took teach-taught tear-tore tell-told think-thought throw-threw
understand-understood wake-woke wear-wore weave-wove weep-wept win-won wind-wound withdraw-withdrew write-wrote
bind-bound breed-bred cling-clung forbid-forbade
"""

REGULAR = """
accept-accepted add-added agree-agreed allow-allowed answer-answered arrive-arrived ask-asked bake-baked beg-begged
believe-believed borrow-borrowed brush-brushed call-called carry-carried change-changed chase-chased clean-cleaned
climb-climbed close-closed collect-collected complain-complained cook-cooked copy-copied count-counted cover-covered
cry-cried dance-danced decide-decided deliver-delivered deny-denied describe-described discover-discovered
divide-divided drop-dropped dry-dried earn-earned empty-emptied enjoy-enjoyed enter-entered escape-escaped
explain-explained fix-fixed follow-followed fry-fried glue-glued grab-grabbed guess-guessed happen-happened
hate-hated help-helped hop-hopped hope-hoped hug-hugged hurry-hurried imagine-imagined invite-invited jog-jogged
join-joined jump-jumped kick-kicked knock-knocked laugh-laughed learn-learned like-liked listen-listened look-looked
love-loved marry-married move-moved need-needed notice-noticed offer-offered open-opened order-ordered paint-painted
pass-passed plan-planned play-played pour-poured pray-prayed prefer-preferred pull-pulled push-pushed rain-rained
reach-reached remember-remembered repair-repaired reply-replied rob-robbed save-saved shout-shouted smile-smiled
start-started stay-stayed stop-stopped study-studied talk-talked travel-traveled try-tried visit-visited wait-waited
walk-walked want-wanted wash-washed watch-watched work-worked worry-worried
"""


def categories() -> list[tuple[str, str]]:
    """(word, its category), every word once."""
    return [(word.replace("-", " "), name) for name, words in CATEGORIES.items() for word in words.split()]


def past_tenses() -> list[tuple[str, str]]:
    """(verb, its past tense), about half of them irregular."""
    return [tuple(pair.split("-")) for pair in (IRREGULAR + REGULAR).split()]
