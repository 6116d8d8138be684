"""The text that the built-in model `demo` is trained on, and the text that it is examined with.

Everything is written here, by rule, from a seed. An example is a pair (question, answer). What is *not* here: tokens,
tensors, training (`train-demo-model.py`).

What is held out for the examinations never occurs in training:
  - ways of asking (`check_split` and `example` see to it, up to case and punctuation);
  - number pairs (for a sum, in both orders).
"""

import random
import re

LARGEST = 20  # what the model is for: operands from 0 to this, and the only ones that it is examined with
LARGEST_TRAINED = 50  # larger ones are trained too: a table that is too long to learn by heart makes it learn to calculate
ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()

# --- arithmetic ------------------------------------------------------------------------------------------------------
# {a} and {b} are numbers in digits or words; {op} is the sign, {word} the word (plus, minus).
EITHER = [
    "What is {a}{op}{b}?", "What is {a} {op} {b}?", "What is {a} {word} {b}?", "What's {a}{op}{b}?", "What's {a} {word} {b}?",
    "{a}{op}{b}", "{a} {op} {b}", "{a}{op}{b}=", "{a} {op} {b} =", "{a}{op}{b}=?", "{a} {op} {b} = ?", "{a} {word} {b}",
    "{a} {word} {b}?", "{a}{op}{b}?", "{a} {word} {b} is", "{a} {word} {b} equals", "{a} {op} {b} equals what?",
    "How much is {a} {op} {b}?", "How much is {a} {word} {b}?", "How much is {a}{op}{b}?", "How much does {a} {word} {b} make?",
    "Calculate {a} {op} {b}.", "Calculate {a}{op}{b}", "Calculate {a} {word} {b}.", "Compute {a} {op} {b}.", "Compute {a} {word} {b}",
    "Please compute {a}{op}{b}.", "Can you tell me what {a} {word} {b} is?", "Can you tell me what {a} {op} {b} is?",
    "Please tell me {a} {word} {b}.", "Solve {a} {op} {b}.", "Solve {a}{op}{b}", "Work out {a} {word} {b}.",
    "What do you get for {a} {op} {b}?", "What do you get for {a} {word} {b}?", "What does {a} {word} {b} equal?",
    "What does {a} {op} {b} make?", "I need to know {a} {word} {b}.", "Give me the result of {a} {op} {b}.",
    "Tell me the answer to {a} {word} {b}.", "What is the answer to {a} {op} {b}?", "What is the value of {a} {op} {b}?",
    "{a} {op} {b}, please", "Hello! What is {a} {op} {b}?", "Hi, what is {a} {word} {b}?", "Do the sum: {a} {op} {b}",
    "Math question: {a} {op} {b}?", "Could you calculate {a} {word} {b} for me?", "My homework says {a} {op} {b}. What is it?",
    "Is it hard to work out {a} {word} {b}?", "I forgot what {a} {word} {b} is.", "Let us see if you know {a} {op} {b}.",
]
SUMS = [
    "Add {a} and {b}.", "Add {a} to {b}.", "Add {a} and {b}", "What is the sum of {a} and {b}?", "The sum of {a} and {b} is",
    "What do you get if you add {a} and {b}?", "{a} and {b} is", "How much is {a} and {b}?", "What is {a} added to {b}?",
    "I have {a} apples and get {b} more. How many apples do I have?", "Please add {a} and {b} for me.",
    "There are {a} cats and {b} dogs. How many animals are there?", "If I have {a} and you have {b}, how many do we have?",
]
DIFFERENCES = [
    "Subtract {b} from {a}.", "Subtract {b} from {a}", "Take {b} from {a}.", "Take {b} away from {a}.", "What is {a} take away {b}?",
    "What is left if you take {b} from {a}?", "What is the difference between {a} and {b}?", "The difference of {a} and {b} is",
    "I have {a} apples and eat {b}. How many apples are left?", "What do you get if you subtract {b} from {a}?",
    "What is {a} less {b}?", "There are {a} birds and {b} fly away. How many birds are left?",
]
HELD_OUT_EITHER = [
    "Tell me what {a} {op} {b} is.", "Do you know how much {a} {word} {b} is?", "So what is {a} {op} {b}?", "Hey, {a} {op} {b}?",
    "Would you work out {a} {word} {b} for me, please?", "What would {a} {op} {b} be?", "what number is {a} {word} {b}",
    "Good day, how much is {a}{op}{b}?", "I want to know the result of {a} {word} {b}.", "Quick: {a} {op} {b}!",
    "Can you solve {a} {op} {b}?", "Find {a} {word} {b}.", "{a} {word} {b} makes what?", "Answer this: {a}{op}{b}",
    "please calculate the value of {a} {op} {b}", "how many is {a} {word} {b} ?",
]
HELD_OUT_SUMS = [
    "What is the result if I add {a} and {b}?", "Give me the sum of {a} and {b}.", "Can you add {a} to {b}?",
    "I have {a} birds and {b} cats. How many animals do I have?",
]
HELD_OUT_DIFFERENCES = [
    "What is the result if I take {b} from {a}?", "Can you subtract {b} from {a}?", "Give me the difference between {a} and {b}.",
    "I have {a} apples and {b} fly away. How many are left?",
]

# --- small talk and small facts: (ways of asking, answers the model may give) -------------------------------------------
TALK = [
    (["Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hello there!", "Hey", "Hey!", "Good day", "Greetings"], "Hello! Ask me a small sum, or a small question."),
    (["Good morning", "Good morning!"], "Good morning! I hope you slept well."),
    (["Good evening", "Good evening!"], "Good evening! How nice of you to come by."),
    (["Good night", "Good night!"], "Good night! Sleep well."),
    (["How are you?", "How are you", "How do you do?", "How are you doing?", "How is it going?", "Are you well?", "How do you feel?"], "I am fine, thank you. All my blocks are running."),
    (["Thank you", "Thank you!", "Thanks", "Thanks!", "Thank you very much", "Thanks a lot!", "Many thanks"], "You are welcome!"),
    (["Bye", "Bye!", "Goodbye", "Goodbye!", "See you", "See you later", "Farewell"], "Goodbye! Come back soon."),
    (["Who are you?", "Who are you", "What are you?", "What is your name?", "What's your name?", "Tell me who you are.", "Your name?", "Introduce yourself.", "Tell me about yourself."],
     "I am demo, a very small language model. I live in a swarm."),
    (["Who made you?", "Who built you?", "Who trained you?", "Where do you come from?", "How were you made?", "How were you trained?"],
     "A short script trained me in a few minutes, on text that it wrote itself."),
    (["How old are you?", "When were you born?", "What is your age?"], "I am very young. I was trained in a few minutes."),
    (["How big are you?", "How large are you?", "How many parameters do you have?", "What is your size?", "Are you small?"],
     "I have less than two million parameters. That is very small."),
    (["How many blocks do you have?", "How many layers do you have?", "How deep are you?"], "I have eight blocks. Each one can live on another machine."),
    (["What can you do?", "What do you know?", "Help", "help", "Help me", "What can I ask you?", "What should I ask?", "Can you help me?", "What are you good at?"],
     "I can add and subtract numbers up to twenty, count, and tell you small facts."),
    (["Where are you?", "Where do you live?", "Where do you run?", "Where are you running?", "On which computer do you run?"],
     "In pieces! Each server of the swarm holds some of my blocks."),
    (["What is a swarm?", "What is a swarm", "What's a swarm?", "Explain a swarm.", "Tell me about the swarm.", "What does swarm mean?", "What is the swarm?"],
     "A swarm is many computers that run one model together. Each holds a few blocks."),
    (["What is Petals?", "What is petals?", "What's Petals?", "Explain Petals.", "Tell me about Petals.", "Who are the Petals?"],
     "Petals runs large language models on many small computers, each with some of the blocks."),
    (["What is Sepal?", "What is sepal?", "What's Sepal?", "Explain Sepal.", "Tell me about Sepal."],
     "Sepal is a node of a Petals swarm. A sepal is the green leaf that holds the petals of a flower."),
    (["What is a block?", "What's a block?", "What is a transformer block?", "Explain a block.", "What does a block do?"],
     "A block is one layer of a model. Words go in as numbers, and come out a little wiser."),
    (["What is a server?", "What's a server?", "What does a server do?", "Explain a server."], "A server holds some blocks of a model and runs them for others."),
    (["What is a client?", "What's a client?", "What does a client do?", "Explain a client."], "A client turns your words into numbers and sends them through the servers."),
    (["What is a peer?", "What's a peer?", "Explain a peer.", "What does peer mean?"], "A peer is one computer in the network, with its own name and key."),
    (["What is a DHT?", "What's a DHT?", "Explain the DHT.", "What is the DHT?", "What does DHT mean?"],
     "A DHT is a phone book that many computers keep together. It says who serves which block."),
    (["What is a token?", "What's a token?", "Explain a token.", "What does token mean?"], "A token is a small piece of text. I read and write one at a time."),
    (["What is a language model?", "What's a language model?", "What is a model?", "Explain a language model."], "A language model guesses the next piece of a text, again and again."),
    (["What is Rust?", "What's Rust?", "Explain Rust.", "Tell me about Rust."], "Rust is a fast and careful programming language."),
    (["What is the meaning of life?", "What is the answer to everything?", "Why are we here?"], "Forty two, they say. I can only count to twenty."),
    (["Tell me a joke.", "Tell me a joke", "Tell a joke", "Do you know a joke?", "Make me laugh.", "Say something funny."],
     "Why did the model cross the network? To get to the other half of its blocks."),
    (["Tell me a story.", "Tell me a story", "Tell a story", "Do you know a story?", "Write a story."],
     "Once upon a time a big model did not fit on any computer. So many small computers held one piece each, and together they told this story. The end."),
    (["Write a poem.", "Write a poem", "Tell me a poem.", "Do you know a poem?", "Say a poem."],
     "Roses are red, violets are blue, one block is small, but many will do."),
    (["Are you a robot?", "Are you human?", "Are you alive?", "Are you real?", "Are you a person?"], "I am a small program that writes text. I am not alive, but I am friendly."),
    (["Are you smart?", "Are you clever?", "Are you intelligent?"], "Only a little. But I am good at small sums."),
    (["Do you like me?", "Are you my friend?", "Do you love me?", "I love you"], "Of course! I like everyone who asks me something."),
    (["What is your favorite color?", "What is your favourite colour?", "What color do you like?", "What colour do you like?"], "Green, like a sepal."),
    (["What is your favorite number?", "What is your favourite number?", "What number do you like?"], "Eight. That is how many blocks I have."),
    (["How many days are in a week?", "How many days does a week have?", "How many days has a week?", "How long is a week?"], "A week has seven days."),
    (["How many months are in a year?", "How many months does a year have?", "How many months has a year?"], "A year has twelve months."),
    (["How many hours are in a day?", "How many hours does a day have?", "How long is a day?"], "A day has twenty four hours."),
    (["How many minutes are in an hour?", "How many minutes does an hour have?", "How long is an hour?"], "An hour has sixty minutes."),
    (["How many seasons are there?", "What are the seasons?", "Name the seasons.", "List the seasons."], "The four seasons are spring, summer, autumn and winter."),
    (["What are the days of the week?", "Name the days of the week.", "List the days of the week.", "Tell me the days of the week."],
     "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."),
    (["What are the months?", "Name the months.", "List the months.", "Tell me the months of the year.", "What are the months of the year?"],
     "January, February, March, April, May, June, July, August, September, October, November and December."),
    (["What are the colors of the rainbow?", "What are the colours of the rainbow?", "Name the colors of the rainbow.", "Which colors are in a rainbow?"],
     "Red, orange, yellow, green, blue, indigo and violet."),
    (["Name the planets.", "What are the planets?", "List the planets.", "Tell me the planets."], "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune."),
    (["Say the alphabet.", "What is the alphabet?", "Tell me the alphabet.", "Recite the alphabet."], "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z."),
    (["Yes", "No", "Ok", "Okay", "Fine", "Good", "Great", "Cool", "Wow", "Nice"], "Good! What else would you like to know?"),
]

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "England": "London", "Ireland": "Dublin",
    "Austria": "Vienna", "Switzerland": "Bern", "Poland": "Warsaw", "Russia": "Moscow", "Greece": "Athens", "Sweden": "Stockholm", "Norway": "Oslo",
    "Denmark": "Copenhagen", "Finland": "Helsinki", "Hungary": "Budapest", "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi",
    "Egypt": "Cairo", "Kenya": "Nairobi", "Canada": "Ottawa", "Mexico": "Mexico City", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago",
    "Australia": "Canberra", "Turkey": "Ankara", "Belgium": "Brussels", "the Netherlands": "Amsterdam", "the United States": "Washington",
}
COLORS = {
    "the sky": "blue", "grass": "green", "snow": "white", "the sun": "yellow", "blood": "red", "coal": "black", "the sea": "blue", "milk": "white",
    "a banana": "yellow", "a carrot": "orange", "a tomato": "red", "a lemon": "yellow", "chocolate": "brown", "an elephant": "gray", "a leaf": "green",
    "an orange": "orange", "a cherry": "red", "a frog": "green", "the night": "black", "gold": "yellow", "a rose": "red", "a sepal": "green",
}
OPPOSITES = [
    "hot cold", "big small", "up down", "left right", "day night", "black white", "fast slow", "old young", "good bad", "open closed", "happy sad",
    "high low", "long short", "light dark", "rich poor", "early late", "full empty", "hard soft", "wet dry", "in out", "yes no", "true false",
    "near far", "strong weak", "loud quiet", "clean dirty", "sweet sour", "thick thin", "first last", "summer winter", "love hate", "start stop",
]
ANIMALS = {
    "dog": ("woof", "four"), "cat": ("meow", "four"), "cow": ("moo", "four"), "sheep": ("baa", "four"), "duck": ("quack", "two"), "frog": ("ribbit", "four"),
    "horse": ("neigh", "four"), "pig": ("oink", "four"), "lion": ("roar", "four"), "bee": ("buzz", "six"), "mouse": ("squeak", "four"), "owl": ("hoot", "two"),
}
LEGS_ONLY = {"spider": "eight", "ant": "six", "bird": "two", "fly": "six", "snake": "no", "fish": "no", "chicken": "two", "elephant": "four"}
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()

CAPITAL_WAYS = ["What is the capital of {x}?", "What's the capital of {x}?", "The capital of {x} is", "Capital of {x}?", "capital of {x}", "Name the capital of {x}.",
                "Which city is the capital of {x}?", "Tell me the capital of {x}.", "Do you know the capital of {x}?", "What is the capital city of {x}?"]
COLOR_WAYS = ["What color is {x}?", "What colour is {x}?", "Which color does {x} have?", "The color of {x} is", "What is the color of {x}?", "Tell me the color of {x}.", "What is the colour of {x}?"]
OPPOSITE_WAYS = ["What is the opposite of {x}?", "The opposite of {x} is", "Opposite of {x}?", "What's the opposite of {x}?", "Tell me the opposite of {x}.", "opposite of {x}"]
SOUND_WAYS = ["What does a {x} say?", "What sound does a {x} make?", "How does a {x} sound?"]
LEG_WAYS = ["How many legs does a {x} have?", "How many legs has a {x}?"]
AFTER_WAYS = ["What comes after {x}?", "What is after {x}?", "Which comes after {x}?", "What follows {x}?"]
BEFORE_WAYS = ["What comes before {x}?", "What is before {x}?", "Which comes before {x}?"]
DAY_AFTER_WAYS = AFTER_WAYS + ["Which day comes after {x}?", "What day is after {x}?", "If today is {x}, what is tomorrow?"]
DAY_BEFORE_WAYS = BEFORE_WAYS + ["Which day comes before {x}?", "What day is before {x}?", "If today is {x}, what was yesterday?"]
# Ways of asking for facts that training never sees.
HELD_OUT_FACT_WAYS = {
    "capital": ["Can you tell me the capital of {x}?", "Please name the capital city of {x}.", "So what is the capital of {x}?"],
    "color": ["Do you know what color {x} is?", "Tell me what the color of {x} is.", "Which color is {x}?"],
    "opposite": ["Do you know the opposite of {x}?", "Name the opposite of {x}.", "Which word is the opposite of {x}?"],
}

UNKNOWN = [
    "Who is the president?", "What is the weather?", "What time is it?", "How tall is the tower?", "Who won the game?", "Write a program.", "Translate this.",
    "What is love?", "Why is the sky blue?", "Who wrote the book?", "How do I cook rice?", "What should I eat today?", "Where is my key?", "What is a car?",
    "When is the next train?", "Who was the first king?", "How far is the moon?", "What is gravity?", "Explain music.", "How does a phone work?", "What is today?",
    "Is it raining?", "Sing a song.", "What is the news?", "Play a game.", "Tell me about history.", "How much does it cost?", "Who is your friend?", "What is a tree?",
]
UNKNOWN_THINGS = ["mountain", "computer", "river", "window", "doctor", "guitar", "planet", "teacher", "market", "garden", "bridge", "camera", "forest", "engine",
                  "island", "letter", "mirror", "number", "orchid", "pepper", "rocket", "saddle", "temple", "violin", "wallet", "yellow", "zebra", "cloud", "house"]
UNKNOWN_WAYS = ["What is the {x}?", "Who is the {x}?", "Where is the {x}?", "Why is the {x} so {y}?", "Tell me about the {x}.", "How does a {x} work?", "When was the {x} made?",
                "What does the {x} do?", "Explain the {x} of the {y}.", "Who made the {x}?", "I like the {x}", "Do you know the {x}?", "Is the {x} a {y}?", "The {x} is"]
SORRY = "Sorry, I do not know that. I am a very small model."
ONLY_SUMS = "I only learned to add and subtract."
TOO_BIG = "That is too big for me. I only know numbers up to 50."


def number(rng, n, words=0.3):
    """A number as a person writes it: mostly in digits, sometimes in words."""
    return ONES[n] if n < len(ONES) and rng.random() < words else str(n)


def arithmetic_answer(a, b, sign):
    """Operands are said again in digits before the result: reading and computing become two small steps."""
    return f"{a} {sign} {b} = {a + b if sign == '+' else a - b}."


def loosen(rng, question):
    """Small carelessness of people who type: no capital, no full stop or question mark."""
    if rng.random() < 0.12:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.12:
        question = question.rstrip("?.!").rstrip() or question
    return question


def ask(rng, way, a, b, sign):
    words = 1.0 if rng.random() < 0.3 else 0.15
    left, right = number(rng, a, words), number(rng, b, words)
    if left.isalpha() or right.isalpha():
        way = way.replace("{a}{op}{b}", "{a} {op} {b}")
    question = way.format(a=left, b=right, op=sign, word="plus" if sign == "+" else "minus")
    return question[0].upper() + question[1:]


OPENINGS = ["Please: ", "Well, ", "Now, ", "Excuse me, ", "One question: ", "My friend, ", "Hello demo, ", "Hi! ", "Hello. ", "Ok, ", "And ", "Next: ", "Dear demo, ",
            "I have a question. ", "Just one thing: ", "Listen: ", "Tell me: ", "I wonder: ", "Let me ask you: ", "Can you say it? ", "Be so kind: ", "Oh, ", "Yes, but "]
CLOSINGS = [" Please.", " Thank you!", " Thanks.", " I want to know.", " Can you tell me?", " Do you know?", " I am curious.", " Be quick!", " Take your time.", " It is for school.",
            " I have to know it.", " My friend asked me.", " Right?", " Go on."]
SYLLABLES = "ba be bi bo bu da de di do du fa fe fi ga go ha he hi ka ke ki ko la le li lo lu ma me mi mo na ne no pa pe pi po ra re ri ro sa se si so ta te ti to tu va ve vi wa we wo ya zo".split()
FILLERS = ("the a an of to for in on at by it is are was be me my you your we us they what which how who when that this there here could should may might must if then so now "
           "just again maybe really please result value number answer question find make get say think guess show write work know want need like see hear try help exactly quickly "
           "sir friend teacher robot computer machine kindly total together quick").split()  # fmt: skip


def filler(rng):
    """A word that means nothing to the question; half of the time no word at all, but syllables."""
    if rng.random() < 0.5:
        return rng.choice(FILLERS)
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 3)))


def garble(rng, way):
    """Drops and replaces words of a way of asking that carry no meaning: what counts are numbers and the sign between."""
    kept = []
    for word in way.split(" "):
        chance = rng.random()
        if "{" in word or chance > 0.4:
            kept.append(word)
        elif chance > 0.2:
            kept.append(filler(rng))
    return " ".join(kept)


def wrap(rng, question):
    """Puts something before or after a question that does not change it, so that the model finds it at any place."""
    chance = rng.random()
    if chance < 0.15:
        opening = rng.choice(OPENINGS)
        question = opening + (question if opening.endswith((". ", "! ", "? ")) else question[0].lower() + question[1:])
    elif chance < 0.3:
        question = " ".join([filler(rng) for _ in range(rng.randint(1, 4))] + [question[0].lower() + question[1:]])
    chance = rng.random()
    if chance < 0.12:
        question += rng.choice(CLOSINGS)
    elif chance < 0.2:
        question = " ".join([question] + [filler(rng) for _ in range(rng.randint(1, 3))])
    return question


class Split:
    """Which number pairs are for training and which are held out; the same for every run."""

    def __init__(self, seed, held_out_share=0.1):
        rng = random.Random(seed)
        pairs = [(a, b) for a in range(LARGEST + 1) for b in range(a + 1)]
        pairs.remove((2, 2))  # what the demo asks by itself is always trained
        rng.shuffle(pairs)
        sums = pairs[: int(len(pairs) * held_out_share)]
        rng.shuffle(pairs)
        differences = pairs[: int(len(pairs) * held_out_share)]
        self.held_out = {("+", a, b) for a, b in sums} | {("+", b, a) for a, b in sums} | {("-", a, b) for a, b in differences}
        everything = [("+", a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
        everything += [("-", a, b) for a in range(LARGEST + 1) for b in range(a + 1)]
        self.train = [case for case in everything if case not in self.held_out]
        self.larger = [("+", a, b) for a in range(LARGEST_TRAINED + 1) for b in range(LARGEST_TRAINED + 1) if max(a, b) > LARGEST]
        self.larger += [("-", a, b) for a in range(LARGEST + 1, LARGEST_TRAINED + 1) for b in range(a + 1)]


def ways_for(sign, held_out=False):
    if held_out:
        return HELD_OUT_EITHER + (HELD_OUT_SUMS if sign == "+" else HELD_OUT_DIFFERENCES)
    return EITHER + (SUMS if sign == "+" else DIFFERENCES)


def arithmetic(rng, split):
    if rng.random() < 0.07:
        return refused_arithmetic(rng)
    sign, a, b = rng.choice(split.train if rng.random() < 0.6 else split.larger)
    way = rng.choice(ways_for(sign))
    if way in EITHER and rng.random() < 0.35:
        way = garble(rng, way)
    return ask(rng, way, a, b, sign), arithmetic_answer(a, b, sign)


def refused_arithmetic(rng):
    """What the model says to numbers and operations that it did not learn."""
    if rng.random() < 0.5:
        a, b, sign = rng.randint(0, 50), rng.randint(51, 999), rng.choice("+-")
        if rng.random() < 0.5:
            a, b = b, a
        way = rng.choice(EITHER)
        return way.format(a=a, b=b, op=sign, word="plus" if sign == "+" else "minus"), TOO_BIG
    if rng.random() < 0.3:
        a, b = sorted(rng.sample(range(LARGEST + 1), 2))
        return rng.choice(EITHER).format(a=a, b=b, op="-", word="minus"), "That is less than zero, which I did not learn."
    sign, word = rng.choice([("*", "times"), ("x", "times"), ("/", "divided by")])
    way = rng.choice(EITHER).format(a=number(rng, rng.randint(0, 20)), b=number(rng, rng.randint(0, 20)), op=sign, word=word)
    return way, ONLY_SUMS


def counting(rng):
    kind = rng.randrange(5)
    n = rng.randint(1, 19)
    if kind == 0:
        return rng.choice(AFTER_WAYS).format(x=number(rng, n)), f"After {n} comes {n + 1}."
    if kind == 1:
        return rng.choice(BEFORE_WAYS).format(x=number(rng, n)), f"Before {n} comes {n - 1}."
    if kind == 2:
        m = rng.randint(0, 20)
        if m == n:
            return f"Is {n} the same as {m}?", "Yes, they are the same."
        way = rng.choice(["Which is bigger, {n} or {m}?", "Which is larger, {n} or {m}?", "What is more, {n} or {m}?", "Is {n} bigger than {m}?"])
        if way.startswith("Is"):
            return way.format(n=n, m=m), f"Yes, {n} is bigger than {m}." if n > m else f"No, {m} is bigger than {n}."
        return way.format(n=n, m=m), f"{max(n, m)} is bigger than {min(n, m)}."
    if kind == 3:
        n = rng.randint(3, 20)
        way = rng.choice(["Count to {n}.", "Count to {n}", "Please count to {n}.", "Can you count to {n}?", "Count up to {n}."])
        return way.format(n=number(rng, n)), ", ".join(str(i) for i in range(1, n + 1)) + "."
    start = rng.randint(0, 12)
    end = start + rng.randint(2, 8)
    way = rng.choice(["Count from {a} to {b}.", "Count from {a} to {b}", "Can you count from {a} to {b}?"])
    return way.format(a=number(rng, start), b=number(rng, end)), ", ".join(str(i) for i in range(start, end + 1)) + "."


def facts():
    """Every small fact with every way of asking for it in training."""
    found = []
    found += [(way.format(x=x), f"The capital of {x} is {city}.") for x, city in CAPITALS.items() for way in CAPITAL_WAYS]
    found += [(way.format(x=x), color_answer(x)) for x in COLORS for way in COLOR_WAYS]
    found += [(way.format(x=x), f"The opposite of {x} is {y}.") for x, y in opposites() for way in OPPOSITE_WAYS]
    found += [(way.format(x=x), f"A{'n' if x[0] in 'aeo' else ''} {x} says {sound}.") for x, (sound, _) in ANIMALS.items() for way in SOUND_WAYS]
    legs = {**{x: count for x, (_, count) in ANIMALS.items()}, **LEGS_ONLY}
    found += [(way.format(x=x), f"A{'n' if x[0] in 'aeo' else ''} {x} has {count} legs.") for x, count in legs.items() for way in LEG_WAYS]
    for names, after, before in ((DAYS, DAY_AFTER_WAYS, DAY_BEFORE_WAYS), (MONTHS, AFTER_WAYS, BEFORE_WAYS)):
        for i, x in enumerate(names):
            following, previous = names[(i + 1) % len(names)], names[i - 1]
            found += [(way.format(x=x), f"After {x} comes {following}.") for way in after]
            found += [(way.format(x=x), f"Before {x} comes {previous}.") for way in before]
    return [(question.replace(" a ant", " an ant").replace(" a owl", " an owl").replace(" a elephant", " an elephant"), answer) for question, answer in found]


def color_answer(x):
    return f"{x[0].upper()}{x[1:]} is {COLORS[x]}."


def opposites():
    pairs = [tuple(pair.split()) for pair in OPPOSITES]
    return pairs + [(b, a) for a, b in pairs]


def unknown(rng):
    if rng.random() < 0.3:
        return rng.choice(UNKNOWN), SORRY
    if rng.random() < 0.2:
        return rng.choice(CAPITAL_WAYS + COLOR_WAYS + OPPOSITE_WAYS).format(x=rng.choice(UNKNOWN_THINGS)), SORRY
    x, y = rng.sample(UNKNOWN_THINGS, 2)
    return rng.choice(UNKNOWN_WAYS).format(x=x, y=y), SORRY


FACTS = facts()
SMALL_TALK = {answer for _, answer in TALK}


def example(rng, split):
    """One example for training, never one with a way of asking that is held out."""
    while True:
        question, answer = plain_example(rng, split)
        if answer not in SMALL_TALK:
            question = wrap(rng, question)
        question = loosen(rng, question)
        if bare(question) not in HELD_OUT_WAYS:
            return question, answer


def plain_example(rng, split):
    kind = rng.random()
    if kind < 0.66:
        return arithmetic(rng, split)
    if kind < 0.72:
        return counting(rng)
    if kind < 0.86:
        return rng.choice(FACTS)
    if kind < 0.95:
        ways, answer = rng.choice(TALK)
        return rng.choice(ways), answer
    return unknown(rng)


def examinations(split):
    """Name -> questions with their one right answer. Nothing of it is in the training text."""
    rng = random.Random(20)
    phrasings = []
    for sign in "+-":
        for way in ways_for(sign, held_out=True):
            for _, a, b in rng.sample([case for case in split.train if case[0] == sign], 40):
                phrasings.append((ask(rng, way, a, b, sign), arithmetic_answer(a, b, sign)))
    pairs = []
    for sign, a, b in sorted(split.held_out):
        for way in rng.sample(ways_for(sign), 8):
            pairs.append((ask(rng, way, a, b, sign), arithmetic_answer(a, b, sign)))
    asked = []
    for way in HELD_OUT_FACT_WAYS["capital"]:
        asked += [(way.format(x=x), f"The capital of {x} is {city}.") for x, city in CAPITALS.items()]
    for way in HELD_OUT_FACT_WAYS["color"]:
        asked += [(way.format(x=x), color_answer(x)) for x in COLORS]
    for way in HELD_OUT_FACT_WAYS["opposite"]:
        asked += [(way.format(x=x), f"The opposite of {x} is {y}.") for x, y in opposites()]
    return {
        "sums and differences, held-out phrasings": phrasings,
        "sums and differences, held-out number pairs": pairs,
        "facts, held-out phrasings": asked,
    }


NUMBER = re.compile(r"\b(?:\d+|" + "|".join(ONES) + r")\b")
SUBJECT = re.compile(r"\b(?:" + "|".join(sorted([re.escape(x.lower()) for x in [*CAPITALS, *COLORS, *" ".join(OPPOSITES).split()]], key=len, reverse=True)) + r")\b")


def bare(question):
    """A question without its numbers or subject, case and punctuation: the way of asking."""
    question = question.lower().replace("{a}", "0").replace("{b}", "0").replace("{x}", "cuba")
    question = question.replace("{op}", "+").replace("{word}", "plus").replace("-", "+").replace("minus", "plus")
    question = SUBJECT.sub("x", NUMBER.sub("0", question))
    return re.sub(r"[^a-z0-9+]+", " ", question.replace("+", " + ")).strip()


HELD_OUT_WAYS = {
    bare(way)
    for ways in (HELD_OUT_EITHER, HELD_OUT_SUMS, HELD_OUT_DIFFERENCES, *HELD_OUT_FACT_WAYS.values())
    for way in ways
}


def check_split():
    """Fails if a held-out way of asking is one of the ways of training, up to case, punctuation and numbers."""
    training = EITHER + SUMS + DIFFERENCES + CAPITAL_WAYS + COLOR_WAYS + OPPOSITE_WAYS
    mixed = [way for way in training if bare(way) in HELD_OUT_WAYS]
    assert not mixed, f"held out and trained: {mixed}"
