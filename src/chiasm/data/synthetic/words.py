"""Words that contents are put together from."""

# ruff: noqa: SIM905 -- lists of words are easier to read and to extend as text

from __future__ import annotations

SURNAMES = (
    "Abbott Achterberg Almeida Andersen Barros Bauer Becker Bennett Bianchi Castillo Chen Costa "
    "Dubois Duarte Eriksson Ferrari Fischer Fournier Garcia Haas Hansen Hoffmann Ibrahim Ivanov "
    "Jansen Johansson Kaya Keller Kowalski Lambert Larsen Lopez Marino Martin Meyer Moreau Moretti "
    "Nakamura Nguyen Novak Okafor Olsen Patel Pereira Petrov Ricci Romano Rossi Santos Schmidt "
    "Silva Smith Suzuki Tanaka Thompson Torres Vargas Walker Weber Yilmaz"
).split()
GIVEN = (
    "Ada Ahmed Alice Amir Anna Boris Carla Chloe Daniel David Elena Emil Fatima Felix Grace Hana "
    "Hugo Ines Ivan Jonas Julia Karim Laura Leo Lina Lucas Maria Marta Milan Nadia Nina Noah Olga "
    "Oscar Paul Petra Rosa Samuel Sara Sofia Theo Tom Vera Victor Yuki Zoe"
).split()
TRADES = (
    "Bakery,Bookshop,Butchers,Cafe,Deli,Electronics,Flowers,Garden Centre,Grocery,Hardware,"
    "Kitchen,Market,Pharmacy,Stationery,Supermarket,Toys"
).split(",")
STREETS = (
    "Acacia Birch Bridge Castle Cedar Chapel Church Garden Harbour Hill King Lake Market Mill "
    "Orchard Park River School Station Valley"
).split()
TOWNS = (
    "Ashford Brookfield Clearwater Dunmore Eastvale Fairview Greenhill Highgate Kingsbury Lakeside "
    "Millbrook Northwood Oakdale Riverton Southport Westbrook"
).split()
GOODS = (
    "Apples,Bananas,Basil plant,Batteries,Bread,Butter,Candles,Carrots,Cheese,Chocolate,Coffee,"
    "Cookies,Cotton socks,Eggs,Envelopes,Flour,Grapes,Green tea,Hammer,Honey,Jam,Lemons,Light bulb,"
    "Milk,Mineral water,Mushrooms,Notebook,Oat flakes,Olive oil,Onions,Orange juice,Paper towels,"
    "Pasta,Pears,Pencil set,Potatoes,Rice,Rope,Salt,Scissors,Screws,Shampoo,Soap,Spinach,Sponge,"
    "Stapler,Sugar,Tape,Tomatoes,Toothpaste,Walnuts,Yoghurt"
).split(",")
MEASURES = (
    ("Visitors", "people"),
    ("Rainfall", "mm"),
    ("Energy use", "kWh"),
    ("Sales", "units"),
    ("Harvest", "tonnes"),
    ("Library loans", "books"),
    ("Bicycle rides", "rides"),
    ("Water use", "litres"),
    ("Support calls", "calls"),
    ("Trees planted", "trees"),
    ("Recycling", "kg"),
    ("Deliveries", "parcels"),
)
PLACES = ("Town hall", "Old harbour", "West park", "North school", "Museum", "City pool", "Market")
GROUPS = (
    ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"),
    ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
    ("2016", "2017", "2018", "2019", "2020", "2021", "2022", "2023", "2024"),
    ("Spain", "Kenya", "Japan", "Brazil", "Norway", "India", "Canada", "Egypt", "Poland"),
    ("North", "South", "East", "West", "Centre"),
    ("Apples", "Pears", "Plums", "Cherries", "Grapes", "Lemons"),
    ("Team A", "Team B", "Team C", "Team D", "Team E", "Team F"),
)
PRODUCTS = (
    "Atlas Beacon Cobalt Comet Delta Ember Falcon Harbor Indigo Juniper Kestrel Lumen Maple Nimbus "
    "Onyx Orbit Pioneer Quartz Ripple Saffron Summit Tundra Vertex Willow Zephyr"
).split()
SERVICES = (
    "Bank,Books,Calendar,Clinic,Cloud,Forum,Garden,Library,Mail,Maps,Music,News,Notes,Photos,"
    "Recipes,School,Shop,Sport,Tickets,Travel,Video,Weather"
).split(",")

SCRIPTS: dict[str, str] = {
    "English": (
        "morning river small garden under bridge walking people quiet market between yellow houses "
        "children carry fresh bread while sailors mend their nets along the stone harbour and wind "
        "moves slowly over open fields where old farmers count every winter star before first snow "
        "autumn letter window kitchen sister answer journey silver mountain evening copper lantern"
    ),
    "French": (
        "matin rivière petite été forêt pluie soleil âme château fenêtre garçon leçon hiver où "
        "déjà très après lumière théâtre crème pain marché école fête île noël être même voix "
        "jardin chemin maison ville cœur sœur montagne étoile neige"
    ),
    "German": (
        "Morgen Fluß Garten Brücke Häuser größer über schön Straße Bäcker Brot Fenster Kälte Äpfel "
        "Öl Übung früh Wärme Schlüssel grün Mädchen Vögel Wälder zwölf fünf hören spät Küche Löwe "
        "Tür Stühle Blätter Jahr Winter Stern"
    ),
    "Greek": (
        "πρωί ποτάμι μικρό κήπος γέφυρα άνθρωποι ήλιος θάλασσα σπίτι ψωμί αγορά παιδιά δρόμος "
        "βιβλίο φως νερό ουρανός χειμώνας καλοκαίρι δέντρο πόλη λόγος καρδιά φίλος βουνό αστέρι "
        "παράθυρο γράμμα νύχτα μέρα φωνή χρόνος"
    ),
    "Russian": (
        "утро река маленький сад мост люди солнце море дом хлеб рынок дети дорога книга свет вода "
        "небо зима лето дерево город слово сердце друг гора звезда окно письмо ночь день голос "
        "время поле ветер снег яблоко"
    ),
    "Armenian": (
        "առավոտ գետ փոքր այգի կամուրջ մարդիկ արև ծով տուն հաց շուկա ճանապարհ գիրք լույս ջուր "
        "երկինք ձմեռ ամառ ծառ քաղաք բառ սիրտ ընկեր լեռ աստղ պատուհան նամակ գիշեր օր ձայն"
    ),
    "Georgian": (
        "დილა მდინარე პატარა ბაღი ხიდი ხალხი მზე ზღვა სახლი პური ბაზარი გზა წიგნი შუქი წყალი ცა "
        "ზამთარი ზაფხული ხე ქალაქი სიტყვა გული მეგობარი მთა ვარსკვლავი ფანჯარა წერილი ღამე დღე ხმა"
    ),
}
"""Words by language. All are written left to right without joining letters, which is what the basic
layout of the fonts sets correctly."""
