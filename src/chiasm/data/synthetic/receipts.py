"""Till receipts: a merchant, a date, items and the sums they add up to."""

from __future__ import annotations

from random import Random

from chiasm.data.degrade import scan
from chiasm.data.synthetic.canvas import Canvas, line_height
from chiasm.data.synthetic.fonts import font
from chiasm.data.synthetic.kind import Asked, Content, Kind, Rendered
from chiasm.data.synthetic.words import GOODS, STREETS, SURNAMES, TOWNS, TRADES

CURRENCIES = ("EUR", "USD", "GBP", "CHF")
PAYMENTS = ("Cash", "Card", "Voucher")
COLUMNS = 34  # characters a line


def draw(random: Random) -> Content:
    """Prices are whole cents; no two items cost the same in all."""
    items: list[dict] = []
    while len(items) < 2 or (len(items) < 8 and random.random() < 0.7):
        name, count = random.choice(GOODS), random.choice((1, 1, 1, 2, 3))
        price = random.randrange(45, 3000, 5)
        if all(i["name"] != name and i["count"] * i["price"] != count * price for i in items):
            items.append({"name": name, "count": count, "price": price})
    day, month, year = random.randint(1, 28), random.randint(1, 12), random.randint(2015, 2026)
    return {
        "merchant": f"{random.choice(SURNAMES)} {random.choice(TRADES)}",
        "street": f"{random.randint(1, 99)} {random.choice(STREETS)} Street",
        "town": random.choice(TOWNS),
        "date": f"{day:02}/{month:02}/{year}",
        "number": random.randint(1000, 99999),
        "currency": random.choice(CURRENCIES),
        "tax_percent": random.choice((5, 7, 10, 20)),
        "payment": random.choice(PAYMENTS),
        "items": items,
    }


def key(content: Content) -> str:
    """The merchant: a model is tested on shops it never saw."""
    return content["merchant"]


def total(content: Content) -> int:
    """Cents to pay; the tax is in the prices."""
    return sum(item["count"] * item["price"] for item in content["items"])


def tax(content: Content) -> int:
    """Cents of tax in the total, half a cent rounded up."""
    percent = content["tax_percent"]
    return (2 * total(content) * percent + 100 + percent) // (2 * (100 + percent))


def money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"


def lines(content: Content) -> list[str]:
    """The receipt as it is printed, COLUMNS characters a line."""

    def spread(left: str, right: str) -> str:
        return left + right.rjust(COLUMNS - len(left))

    items = []
    for item in content["items"]:
        count, price = item["count"], item["price"]
        items.append(spread(item["name"], money(count * price)))
        if count > 1:
            items.append(f"  {count} x {money(price)}")
    rule = "-" * COLUMNS
    return [
        content["merchant"].upper().center(COLUMNS),
        content["street"].center(COLUMNS),
        content["town"].center(COLUMNS),
        "",
        spread(content["date"], f"No. {content['number']}"),
        rule,
        *items,
        rule,
        spread(f"TOTAL {content['currency']}", money(total(content))),
        spread(f"incl. {content['tax_percent']}% tax", money(tax(content))),
        spread("Paid by", content["payment"]),
        "",
        "Thank you for your visit".center(COLUMNS),
    ]


def render(content: Content, random: Random) -> Rendered:
    size = random.randint(15, 19)
    body, bold = font("mono", size), font("mono", size, bold=True)
    step = line_height(body, random.uniform(1.0, 1.25))
    margin = random.randint(26, 44)
    texts = lines(content)
    shade = random.randint(238, 255)
    canvas = Canvas(
        round(body.getlength("0") * COLUMNS) + 2 * margin,
        step * len(texts) + 2 * margin,
        (shade, shade, shade - random.randint(0, 8)),
    )
    for n, line in enumerate(texts):
        strong = n == 0 or line.startswith("TOTAL")
        canvas.text((margin, margin + n * step), line, bold if strong else body)
    image = canvas.image
    return Rendered(scan(image, random) if random.random() < 0.5 else image)


def ask(content: Content, _rendered: Rendered, random: Random) -> list[Asked]:
    item = random.choice(content["items"])
    costs = {i["name"]: i["count"] * i["price"] for i in content["items"]}
    name = item["name"]
    return [
        Asked("merchant", "Which shop is the receipt from?", content["merchant"].upper()),
        Asked("date", "What is the date on the receipt?", content["date"]),
        Asked("address", "What is the address?", f"{content['street']}, {content['town']}"),
        Asked("number", "What is the number of the receipt?", str(content["number"])),
        Asked("total", "What is the total amount?", money(total(content))),
        Asked("currency", "Which currency was paid in?", content["currency"]),
        Asked("tax", "How much tax does the total include?", money(tax(content))),
        Asked("payment", "How was it paid?", content["payment"]),
        Asked("price", f"How much was paid for {name} in all?", money(costs[name])),
        Asked("quantity", f"How many of {name} were bought?", str(item["count"])),
        Asked("dearest", "On which item was the most spent?", max(costs, key=costs.__getitem__)),
        Asked("count", "How many different items were bought?", str(len(costs))),
    ]


def caption(content: Content) -> str:
    return f"a receipt of {content['merchant']} over {money(total(content))} {content['currency']}"


KIND = Kind(draw, key, render, ask, caption)
