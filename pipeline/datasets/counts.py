"""How many images the known data sets have, as published: facts to hold a folder against."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_PACS = """
    dog       379  389  189  772
    elephant  255  457  202  740
    giraffe   285  346  182  753
    guitar    184  135  186  608
    horse     201  324  199  816
    house     295  288  280   80
    person    449  405  432  160
"""
_VLCS = """
    bird    237   80   20  330
    car     123 1209  932  699
    chair   118   88 1036  428
    dog      67   42   30  420
    person  870 1237 1264 1499
"""
_OFFICE_HOME = """
    Alarm_Clock    74   60   79   86
    Backpack       41   56   99   99
    Batteries      27   64   62   64
    Bed            40   98   43   83
    Bike           75   99   44   99
    Bottle         99   99   62   78
    Bucket         40   73   47   80
    Calculator     33   46   81   73
    Calendar       20   78   81   68
    Candles        76   99   56   99
    Chair          69   99   99   96
    Clipboards     25   40   65   65
    Computer       44   99   96   64
    Couch          40   64   88   76
    Curtains       40   42   75   73
    Desk_Lamp      23   41   83   62
    Drill          15   48   67   51
    Eraser         18   40   41   43
    Exit_Sign      21   41   67   81
    Fan            45   50   58   60
    File_Cabinet   22   40   71   58
    Flipflops      46   40   99   85
    Flowers        90   99   91   75
    Folder         20   99   90   57
    Fork           46   61   41   36
    Glasses        40   52   67   60
    Hammer         40   99   57   52
    Helmet         79   69   90   60
    Kettle         46   40   72   72
    Keyboard       18   99   99   75
    Knives         72   53   41   83
    Lamp_Shade     49   40   54   78
    Laptop         51   99   99   67
    Marker         20   71   56   23
    Monitor        42   99   98   71
    Mop            32   40   72   46
    Mouse          18   76   96   60
    Mug            49   99   41   58
    Notebook       21   83   93   68
    Oven           20   40   68   64
    Pan            19   51   70   30
    Paper_Clip     19   40   47   68
    Pen            20   99   60   65
    Pencil         26   99   40   59
    Postit_Notes   19   41   38   67
    Printer        18   87   99   52
    Push_Pin       24   40   43   53
    Radio          47   46   43   66
    Refrigerator   49   40   59   75
    Ruler          15   67   58   41
    Scissors       20   99   99   77
    Screwdriver    30   75   40   51
    Shelf          42   42   49   66
    Sink           41   42   46   77
    Sneakers       46   43   99   88
    Soda           40   61   43   63
    Speaker        20   90   99   81
    Spoon          46   60   47   54
    TV             40   99   76   53
    Table          16   80   60   59
    Telephone      44   99   58   82
    ToothBrush     43   39   42   85
    Toys           20   99   45   67
    Trash_Can      21   53   93   81
    Webcam         16   40   98   49
"""
_DOMAIN_NET = """
    The_Eiffel_Tower The_Great_Wall_of_China The_Mona_Lisa aircraft_carrier airplane alarm_clock
    ambulance angel animal_migration ant anvil apple arm asparagus axe backpack banana bandage
    barn baseball baseball_bat basket basketball bat bathtub beach bear beard bed bee belt bench
    bicycle binoculars bird birthday_cake blackberry blueberry book boomerang bottlecap bowtie
    bracelet brain bread bridge broccoli broom bucket bulldozer bus bush butterfly cactus cake
    calculator calendar camel camera camouflage campfire candle cannon canoe car carrot castle
    cat ceiling_fan cell_phone cello chair chandelier church circle clarinet clock cloud
    coffee_cup compass computer cookie cooler couch cow crab crayon crocodile crown cruise_ship
    cup diamond dishwasher diving_board dog dolphin donut door dragon dresser drill drums duck
    dumbbell ear elbow elephant envelope eraser eye eyeglasses face fan feather fence finger
    fire_hydrant fireplace firetruck fish flamingo flashlight flip_flops floor_lamp flower
    flying_saucer foot fork frog frying_pan garden garden_hose giraffe goatee golf_club grapes
    grass guitar hamburger hammer hand harp hat headphones hedgehog helicopter helmet hexagon
    hockey_puck hockey_stick horse hospital hot_air_balloon hot_dog hot_tub hourglass house
    house_plant hurricane ice_cream jacket jail kangaroo key keyboard knee knife ladder lantern
    laptop leaf leg light_bulb lighter lighthouse lightning line lion lipstick lobster lollipop
    mailbox map marker matches megaphone mermaid microphone microwave monkey moon mosquito
    motorbike mountain mouse moustache mouth mug mushroom nail necklace nose ocean octagon
    octopus onion oven owl paint_can paintbrush palm_tree panda pants paper_clip parachute
    parrot passport peanut pear peas pencil penguin piano pickup_truck picture_frame pig pillow
    pineapple pizza pliers police_car pond pool popsicle postcard potato power_outlet purse
    rabbit raccoon radio rain rainbow rake remote_control rhinoceros rifle river roller_coaster
    rollerskates sailboat sandwich saw saxophone school_bus scissors scorpion screwdriver
    sea_turtle see_saw shark sheep shoe shorts shovel sink skateboard skull skyscraper
    sleeping_bag smiley_face snail snake snorkel snowflake snowman soccer_ball sock speedboat
    spider spoon spreadsheet square squiggle squirrel stairs star steak stereo stethoscope
    stitches stop_sign stove strawberry streetlight string_bean submarine suitcase sun swan
    sweater swing_set sword syringe t-shirt table teapot teddy-bear telephone television
    tennis_racquet tent tiger toaster toe toilet tooth toothbrush toothpaste tornado tractor
    traffic_light train tree triangle trombone truck trumpet umbrella underwear van vase violin
    washing_machine watermelon waterslide whale wheel windmill wine_bottle wine_glass wristwatch
    yoga zebra zigzag
"""
_TERRA_INCOGNITA = "bird bobcat cat coyote dog empty opossum rabbit raccoon squirrel"


@dataclass(frozen=True)
class Published:
    """One data set as its authors count it, and the spellings people's folders have."""

    title: str  # the folder's usual name
    spellings: tuple[str, ...]  # of the folder, as `plain` gives them
    class_names: tuple[str, ...]
    rows: Mapping[str, tuple[int, ...]]  # by domain: each count that is right
    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)  # by (domain, class)
    aliases: Mapping[str, str] = field(default_factory=dict)  # plain spelling -> domain
    totals: tuple[int, ...] = ()  # of whole releases known by their total only
    url: str | None = None

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The domains in sorted order."""
        return tuple(sorted(self.rows))


DOWNLOADS = ("pacs",)
"""What `download` fetches: data sets whose address has been tried."""


def plain(name: str) -> str:
    """`name` in lower case with letters and digits only: "Real World" -> "realworld"."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _with_counts(title: str, domains: tuple[str, ...], table: str, **rest: object) -> Published:
    counts = {}
    for line in table.strip().splitlines():
        class_name, *numbers = line.split()
        for domain, number in zip(domains, numbers, strict=True):
            counts[domain, class_name] = int(number)
    class_names = tuple(sorted({class_name for _, class_name in counts}))
    rows = {d: (sum(counts[d, c] for c in class_names),) for d in domains}
    return Published(title, class_names=class_names, rows=rows, counts=counts, **rest)


KNOWN: Mapping[str, Published] = {
    # The complete per-domain lists *_test_kfold of DeLightCMU/RSC; 9,991 images.
    "pacs": _with_counts(
        "PACS",
        ("art_painting", "cartoon", "photo", "sketch"),
        _PACS,
        spellings=("pacs",),
        aliases={"art": "art_painting"},
        url="https://wjdcloud.blob.core.windows.net/dataset/PACS.zip",
    ),
    # vlcs_files.txt of facebookresearch/DomainBed; 10,729 images.
    "vlcs": _with_counts(
        "VLCS",
        ("Caltech101", "LabelMe", "SUN09", "VOC2007"),
        _VLCS,
        spellings=("vlcs",),
        aliases={"caltech": "Caltech101", "sun": "SUN09", "pascal": "VOC2007", "voc": "VOC2007"},
        url="https://wjdcloud.blob.core.windows.net/dataset/VLCS/VLCS.zip",
    ),
    # data/office-home/*.txt of thuml/CDAN; 15,588 images.
    "office_home": _with_counts(
        "office_home",
        ("Art", "Clipart", "Product", "Real_World"),
        _OFFICE_HOME,
        spellings=("officehome", "officehomedataset", "officehomedataset10072016"),
        url="https://wjdcloud.blob.core.windows.net/dataset/OfficeHome.zip",
    ),
    # The cleaned release of ai.bu.edu/M3SDA; 586,575 images. Some copies have four cliparts more.
    "domain_net": Published(
        "domain_net",
        ("domainnet",),
        tuple(_DOMAIN_NET.split()),
        {
            "clipart": (48129, 48133),
            "infograph": (51605,),
            "painting": (72266,),
            "quickdraw": (172500,),
            "real": (172947,),
            "sketch": (69128,),
        },
    ),
    # The old release's counts by khanrc/miro, issue 9; of the present one the total is known.
    "terra_incognita": Published(
        "terra_incognita",
        ("terraincognita", "terra"),
        tuple(_TERRA_INCOGNITA.split()),
        {
            "location_38": (9767,),
            "location_43": (4020,),
            "location_46": (6122,),
            "location_100": (4879,),
        },
        aliases={f"l{number}": f"location_{number}" for number in (38, 43, 46, 100)},
        totals=(24330,),
    ),
}
