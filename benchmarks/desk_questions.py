"""Open questions about an invented office: no model knows the answers, and every passage is true.

`desk` makes them from a seed: 40 topics in two wordings, filled in five ways, each question once with the passage that
answers it and once with a second one that is beside the point. A topic belongs to one half of the data, so no wording
is in both.
"""

from __future__ import annotations

import re

from ckcontrol.eval.items.states import rank
from ckcontrol.eval.records import Record

FILLINGS = 5
WORDS = {
    "city": "Lisbon Rotterdam Gdansk Porto Leeds Turin Ghent Malmo Graz Bilbao Cork Zadar Lyon Brno Padua Riga".split(),
    "name": (
        "Ms Okafor,Mr Lindqvist,Ms Duarte,Mr Petrov,Ms Tanaka,Mr Haddad,Ms Novak,Mr Silva,Ms Brandt,Mr Osei,"
        "Ms Farrell,Mr Kowal,Ms Ibarra"
    ).split(","),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday".split(),
    "n": [str(n) for n in range(11, 99)],
    "colour": "green orange purple yellow silver brown".split(),
}
# Two wordings of the question; the passage; the part of the answer that must be there.
TOPICS = """
How are refunds handled? | What is done about refunds?
    Refunds are handled by the {city} office within {n} days. A receipt is required. | {city}
Where do parcels leave from? | From where are parcels sent?
    Parcels leave from the {city} warehouse every {day}. | {city}
Who looks after new customers? | Who is in charge of new customers?
    New customers are looked after by {name}. | {name}
What does the basic plan cost? | How much is the basic plan?
    The basic plan costs {n} euros a month. | {n}
When is the archive open? | On which day can the archive be visited?
    The archive is open every {day} until noon. | {day}
How is a lost badge replaced? | What should I do about a lost badge?
    A lost badge is replaced at desk {n} in the main hall. | {n}
Who maintains the printers? | Who takes care of the printers?
    The printers are maintained by {name} on the second floor. | {name}
Where are the backups kept? | In which city are the backups stored?
    The backups are kept in {city} for six months. | {city}
How is overtime paid? | At what rate is overtime paid?
    Overtime is paid at {n} percent of the hourly rate. | {n}
What happens to damaged goods? | How are damaged goods dealt with?
    Damaged goods are inspected by {name} in {city}. | {name}
How do I book a meeting room? | How are meeting rooms booked?
    Meeting rooms are booked with {name} at the front desk. Bookings close at noon. | {name}
When are salaries paid? | On which day do salaries arrive?
    Salaries are paid on the last {day} of the month. | {day}
Where is the spare key? | Where do we keep the spare key?
    The spare key hangs in the {colour} cabinet on the ground floor. | {colour}
How long is the probation period? | How many weeks does probation take?
    The probation period is {n} weeks for every new colleague. | {n}
Who signs travel requests? | Whose signature does a travel request need?
    Travel requests are signed by {name}. The form is on the intranet. | {name}
How are complaints answered? | What happens when a customer complains?
    Complaints are answered by the team in {city} within two working days. | {city}
What is the limit for gifts? | How much may a gift be worth?
    Gifts worth more than {n} euros must be refused. | {n}
When does the newsletter go out? | On what day is the newsletter sent?
    The newsletter goes out every second {day} at nine o'clock. | {day}
Where is the annual meeting? | Where will the annual meeting take place?
    The annual meeting takes place in {city} this year. | {city}
How do visitors get a badge? | What do visitors need to do for a badge?
    Visitors get a {colour} badge from {name} at the entrance. | {name}
Who approves holidays? | Who decides about holiday requests?
    Holidays are approved by {name}, at least three weeks ahead. | {name}
What should happen in a fire alarm? | Where do we gather in a fire alarm?
    In a fire alarm everybody gathers at the {colour} gate behind the canteen. | {colour}
How many days of leave are there? | What is the yearly leave?
    Every employee has {n} days of leave a year. | {n}
How can I reach the help desk? | What is the number of the help desk?
    The help desk is reached at extension {n} until six in the evening. | {n}
How are invoices approved? | What does it take to approve an invoice?
    Invoices above a thousand euros are approved by {name}; smaller ones need no signature. | {name}
Where are old laptops returned? | What should I do with an old laptop?
    Old laptops are returned to the store room in {city}. | {city}
When is the canteen closed? | On which day is the canteen shut?
    The canteen is closed on {day} for cleaning. | {day}
Who trains the interns? | Who is responsible for training interns?
    The interns are trained by {name} during their first month. | {name}
What colour are urgent folders? | How are urgent folders marked?
    Urgent folders are {colour}, and they are read first. | {colour}
How is the car park paid for? | What does the car park cost?
    The car park costs {n} euros a month and is taken from the salary. | {n}
How often are passwords changed? | After how many days do passwords expire?
    Passwords expire after {n} days. A reminder is sent a week before. | {n}
Where are contracts signed? | In which office are contracts signed?
    Contracts are signed in the {city} office, never by post. | {city}
How does the delivery of samples work? | How are samples delivered?
    Samples are delivered by courier from {city} on request. | {city}
Who orders stationery? | How do I get stationery?
    Stationery is ordered by {name} once a month. | {name}
When are the servers restarted? | When is the maintenance of the servers?
    The servers are restarted on {day} night, and mail is down for an hour. | {day}
What is the warranty of the pump? | How long is the pump under warranty?
    The pump has a warranty of {n} months. | {n}
How do I report sickness? | What should I do when I am sick?
    Sickness is reported to {name} by phone before nine. | {name}
What happens to unclaimed mail? | Where does unclaimed mail end up?
    Unclaimed mail is forwarded to {city} after ten days. | {city}
How are new projects numbered? | How do new projects get their number?
    New projects get a number from {name}, beginning with the year. | {name}
Which bin is for paper? | How is paper recycled?
    Paper goes into the {colour} bin beside the lift. | {colour}
"""


def desk() -> list[Record]:
    """Return 200 questions with their passage ("/one"), and with one beside the point too ("/two")."""
    topics = [re.split(r" \| |\n    ", topic) for topic in re.split(r"\n(?! )", TOPICS.strip())]

    def told(topic: int, turn: int) -> tuple[str, str]:
        """Return a topic's passage and answer, filled."""
        filled = {k: words[int(rank(0, k, str(topic), str(turn)), 16) % len(words)] for k, words in WORDS.items()}
        return topics[topic][2].format(**filled), topics[topic][3].format(**filled)

    made = []
    for turn in range(FILLINGS):
        for topic, (*questions, _, _) in enumerate(topics):
            passage, answer = told(topic, turn)
            beside, other = told((topic + 1 + 7 * turn) % len(topics), turn + 100)
            name = f"topic{topic}-{turn}"
            both = (passage, beside) if int(rank(0, name), 16) % 2 else (beside, passage)
            fields = {
                "par_answers": (answer, answer.split()[-1]),
                "state": "helpful",
                "group": f"topic{topic}",
                "meta": {"known": False},
            }
            question = questions[turn % 2]
            made.append(Record(f"{name}/one", question, (passage,), **fields))
            made.append(Record(f"{name}/two", question, both, (other,), **(fields | {"state": "plain"})))
    return made
