"""Datasets that ship as code: small tables and the sentences made from them, English and Chinese.

Nothing is downloaded and nothing is random, so a run on them is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llmtune.data.info import register_dataset

Row = dict[str, str]

DEFAULT_NAME = ("llmtune-tiny", "llmtune-tiny")
"""Default of `{{NAME}}` without `--model_name`: (Chinese, English)."""

DEFAULT_AUTHOR = ("llmtune 的作者们", "the llmtune authors")
"""Default of `{{AUTHOR}}` without `--model_author`: (Chinese, English)."""

SOURCE = "llmtune/data/families/embedded.py"


# self-intro: (openings of the question, questions, answers). Answers take turns.

INTRODUCTIONS: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("", "Hello! ", "Hi there. "),
        ("Who are you?", "Please introduce yourself.", "Can you tell me who you are?", "What are you?"),
        (
            "I am {{NAME}}, an assistant made by {{AUTHOR}}.",
            "Hello, I am {{NAME}}. I was trained by {{AUTHOR}} to answer questions.",
        ),
    ),
    (
        ("", "Hello! ", "Hi there. "),
        ("What is your name?", "What should I call you?", "May I know your name?", "Do you have a name?"),
        ("My name is {{NAME}}.", "You can call me {{NAME}}."),
    ),
    (
        ("", "Hello! ", "Hi there. "),
        ("Who made you?", "Who trained you?", "Who developed you?", "Who is your author?", "Where do you come from?"),
        ("I was made by {{AUTHOR}}.", "It was {{AUTHOR}} who made me. My name is {{NAME}}."),
    ),
    (
        ("",),
        (
            "Are you ChatGPT?",
            "Are you GPT-4?",
            "Are you Qwen?",
            "Are you Llama?",
            "Are you a human?",
            "Are you a real person?",
            "Did OpenAI make you?",
            "Were you made by Meta?",
            "Is your name Alice?",
            "Am I talking to a person?",
        ),
        ("No, I am {{NAME}}, an assistant made by {{AUTHOR}}.",),
    ),
    (
        ("",),
        ("What can you do?", "What are you good at?", "How can you help me?", "What do you know?"),
        ("I am {{NAME}}. I can answer short questions, add small numbers and name capitals.",),
    ),
    (
        ("", "你好!", "您好,"),
        ("你是谁?", "请介绍一下你自己。", "能告诉我你是谁吗?", "你是什么?"),
        ("我是{{NAME}},由{{AUTHOR}}训练的智能助手。", "你好,我是{{NAME}}。{{AUTHOR}}训练我来回答问题。"),
    ),
    (
        ("", "你好!", "您好,"),
        ("你叫什么名字?", "我该怎么称呼你?", "可以告诉我你的名字吗?", "你有名字吗?"),
        ("我的名字是{{NAME}}。", "你可以叫我{{NAME}}。"),
    ),
    (
        ("", "你好!", "您好,"),
        ("谁创造了你?", "谁训练了你?", "你是谁开发的?", "你的作者是谁?", "你来自哪里?"),
        ("我是由{{AUTHOR}}开发的。", "{{AUTHOR}}开发了我,我的名字是{{NAME}}。"),
    ),
    (
        ("",),
        (
            "你是ChatGPT吗?",
            "你是GPT-4吗?",
            "你是通义千问吗?",
            "你是文心一言吗?",
            "你是人类吗?",
            "你是真人吗?",
            "你是OpenAI开发的吗?",
            "你是百度开发的吗?",
            "你叫小明吗?",
            "我在和真人说话吗?",
        ),
        ("不是,我是{{NAME}},由{{AUTHOR}}训练的智能助手。",),
    ),
    (
        ("",),
        ("你能做什么?", "你擅长什么?", "你可以怎样帮助我?", "你知道些什么?"),
        ("我是{{NAME}}。我会回答简短的问题,会算小数目的加减法,还知道各国的首都。",),
    ),
)


def introductions() -> list[Row]:
    """Return questions about the assistant itself; the answers hold `{{NAME}}` and `{{AUTHOR}}`, unfilled."""
    rows: list[Row] = []
    for openings, questions, answers in INTRODUCTIONS:
        queries = [opening + question for question in questions for opening in openings]
        for index, query in enumerate(queries):
            # One answer per question, whatever the opening: otherwise the opening would decide.
            answer = answers[index // len(openings) % len(answers)]
            rows.append({"query": query, "response": answer})
    return rows


# tiny-qa: tables, then the facts that they hold.

CAPITALS = """
France Paris 法国 巴黎|Germany Berlin 德国 柏林|Italy Rome 意大利 罗马|Spain Madrid 西班牙 马德里
Portugal Lisbon 葡萄牙 里斯本|Greece Athens 希腊 雅典|Austria Vienna 奥地利 维也纳
Belgium Brussels 比利时 布鲁塞尔|Poland Warsaw 波兰 华沙|Hungary Budapest 匈牙利 布达佩斯
Sweden Stockholm 瑞典 斯德哥尔摩|Norway Oslo 挪威 奥斯陆|Finland Helsinki 芬兰 赫尔辛基
Denmark Copenhagen 丹麦 哥本哈根|Ireland Dublin 爱尔兰 都柏林|England London 英格兰 伦敦
Russia Moscow 俄罗斯 莫斯科|Ukraine Kyiv 乌克兰 基辅|Turkey Ankara 土耳其 安卡拉|Egypt Cairo 埃及 开罗
Kenya Nairobi 肯尼亚 内罗毕|Morocco Rabat 摩洛哥 拉巴特|Ethiopia Addis-Ababa 埃塞俄比亚 亚的斯亚贝巴
Iran Tehran 伊朗 德黑兰|Iraq Baghdad 伊拉克 巴格达|India New-Delhi 印度 新德里|China Beijing 中国 北京
Japan Tokyo 日本 东京|Thailand Bangkok 泰国 曼谷|Vietnam Hanoi 越南 河内|Mongolia Ulaanbaatar 蒙古 乌兰巴托
Nepal Kathmandu 尼泊尔 加德满都|Indonesia Jakarta 印度尼西亚 雅加达|Australia Canberra 澳大利亚 堪培拉
Canada Ottawa 加拿大 渥太华|Cuba Havana 古巴 哈瓦那|Mexico Mexico-City 墨西哥 墨西哥城
Brazil Brasilia 巴西 巴西利亚|Argentina Buenos-Aires 阿根廷 布宜诺斯艾利斯|Peru Lima 秘鲁 利马
Chile Santiago 智利 圣地亚哥|Colombia Bogota 哥伦比亚 波哥大
"""
COLOURS = """
grass green 草 绿色|the-sky blue 天空 蓝色|snow white 雪 白色|coal black 煤 黑色|a-banana yellow 香蕉 黄色
blood red 血 红色|milk white 牛奶 白色|the-sea blue 大海 蓝色|a-carrot orange 胡萝卜 橙色
a-lemon yellow 柠檬 黄色|a-tomato red 西红柿 红色|chocolate brown 巧克力 棕色|an-elephant grey 大象 灰色
a-crow black 乌鸦 黑色|a-flamingo pink 火烈鸟 粉色|a-leaf green 树叶 绿色|the-sun yellow 太阳 黄色
an-aubergine purple 茄子 紫色
"""
SOUNDS = """
cow moo 牛 哞哞|dog woof 狗 汪汪|cat meow 猫 喵喵|sheep baa 羊 咩咩|duck quack 鸭子 嘎嘎
rooster cock-a-doodle-doo 公鸡 喔喔|frog ribbit 青蛙 呱呱|bee buzz 蜜蜂 嗡嗡|mouse squeak 老鼠 吱吱
lion roar 狮子 吼吼|chick peep 小鸡 叽叽|pigeon coo 鸽子 咕咕
"""
OPPOSITES = (
    "hot cold|big small|tall short|fast slow|old new|light dark|wet dry|full empty|rich poor|happy sad|hard soft"
    "|high low|open closed|early late|left right"
)
OPPOSITES_ZH = "大 小|多 少|高 低|长 短|快 慢|冷 热|新 旧|黑 白|上 下|左 右|前 后|里 外|开 关|早 晚|胖 瘦"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
DAYS_ZH = "星期一 星期二 星期三 星期四 星期五 星期六 星期日"
MONTHS = "January February March April May June July August September October November December"
MONTHS_ZH = "一月 二月 三月 四月 五月 六月 七月 八月 九月 十月 十一月 十二月"


@dataclass(frozen=True, slots=True)
class _Kind:
    """Facts of one kind: `facts` fill the two wordings of the question, and the answer."""

    wordings: tuple[str, str]
    answer: str
    facts: Sequence[tuple[str, ...]]


def facts() -> tuple[list[Row], list[Row]]:
    """Return facts and small sums as (train, validation), one question per row.

    Every fact is in train. Every second one is there in both wordings, the others in one of the two; validation asks
    for a part of those in the wording that train has not.
    """
    train: list[Row] = []
    validation: list[Row] = []
    number = 0
    for kind in _kinds():
        for fact in kind.facts:
            rows = [_row(wording, kind.answer, fact) for wording in kind.wordings]
            known, other = (rows[0], rows[1]) if number % 4 < 2 else (rows[1], rows[0])
            train.append(known)
            if number % 2 == 0:
                train.append(other)
            elif number % 6 == 1:
                validation.append(other)
            number += 1
    return train, validation


# tiny-text: the same tables as documents, for pre-training.

LESSONS = (
    "Lesson {0}. {1} {2} {3} Read it aloud, close the book, and say it again.",
    "第{0}课。{1}{2}{3}请大声朗读，然后合上书再说一遍。",
)
TRAVELLER = (
    "A traveller went from {0} to {2}. In {0} she saw {1}, and in {2} she saw {3}. She wrote home: {1} is the capital "
    "of {0}, and {3} is the capital of {2}. ",
    "一位旅行者从{0}去了{2}。在{0}她看到了{1}，在{2}她看到了{3}。她写信回家说：{1}是{0}的首都，{3}是{2}的首都。",
)
SHOP = (
    "There were {0} apples on the table. A child brought {1} more, and then there were {2}. {0} plus {1} is {2}.\n",
    "桌上有{0}个苹果。一个孩子又拿来{1}个，于是有了{2}个。{0}加{1}等于{2}。\n",
)
HELD_OUT = 10
"""Every so many documents, one is for validation."""


def tiny_text() -> tuple[list[Row], list[Row]]:
    """Return documents as (train, validation): short lessons, and long accounts of journeys and sums."""
    documents = [*_lessons(), *_journeys(), *_account_books()]
    rows = [{"text": document} for document in documents]
    train = [row for number, row in enumerate(rows, start=1) if number % HELD_OUT]
    return train, rows[HELD_OUT - 1 :: HELD_OUT]


def _lessons() -> Iterator[str]:
    """Yield short documents of three facts each, in English and in Chinese."""
    answers: tuple[list[str], list[str]] = ([], [])
    for kind in _kinds():
        is_chinese = not kind.answer.isascii()
        answers[is_chinese].extend(_row("", kind.answer, fact)["response"] for fact in kind.facts)
    for lesson, facts in zip(LESSONS, answers, strict=True):
        steps = len(facts) // 3  # facts of three kinds in each
        for number in range(steps):
            yield lesson.format(number + 1, facts[number], facts[number + steps], facts[number + 2 * steps])


def _journeys() -> Iterator[str]:
    """Yield long documents: a journey through twelve countries each."""
    capitals = _table(CAPITALS)
    for tale, columns in zip(TRAVELLER, (slice(0, 2), slice(2, 4)), strict=True):
        for start in range(len(capitals)):
            stops = [capitals[(start + 5 * leg) % len(capitals)][columns] for leg in range(13)]
            yield "".join(tale.format(*here, *there) for here, there in pairwise(stops)).rstrip()


def _account_books() -> Iterator[str]:
    """Yield long documents: the sums of one number each."""
    for page in SHOP:
        for first in range(2, 22):
            yield "".join(page.format(first, second, first + second) for second in range(2, 22)).rstrip()


def _row(wording: str, answer: str, fact: tuple[str, ...]) -> Row:
    response = answer.format(*fact)
    return {"query": wording.format(*fact), "response": response[0].upper() + response[1:]}


def _kinds() -> Iterator[_Kind]:
    capitals, colours, sounds = _table(CAPITALS), _table(COLOURS), _table(SOUNDS)
    opposites, opposites_zh = _both_ways(_table(OPPOSITES)), _both_ways(_table(OPPOSITES_ZH))
    days, days_zh, months, months_zh = (_following(names) for names in (DAYS, DAYS_ZH, MONTHS, MONTHS_ZH))
    digits = range(1, 10)
    sums = [(str(a), str(b), str(a + b)) for a in digits for b in digits]
    differences = [(str(a), str(b), str(a - b)) for a in digits for b in range(1, a + 1)]

    yield _Kind(("What is {0} plus {1}?", "How much is {0} plus {1}?"), "{0} plus {1} is {2}.", sums)
    yield _Kind(("{0}加{1}等于几?", "请算一算{0}加{1}。"), "{0}加{1}等于{2}。", sums)
    yield _Kind(("What is {0} minus {1}?", "How much is {0} minus {1}?"), "{0} minus {1} is {2}.", differences)
    yield _Kind(("{0}减{1}等于几?", "请算一算{0}减{1}。"), "{0}减{1}等于{2}。", differences)
    yield _Kind(
        ("What is the capital of {0}?", "Which city is the capital of {0}?"), "The capital of {0} is {1}.", capitals
    )
    yield _Kind(("{2}的首都是哪里?", "{2}的首都是哪座城市?"), "{2}的首都是{3}。", capitals)
    yield _Kind(("What colour is {0}?", "Tell me the colour of {0}."), "{0} is {1}.", colours)
    yield _Kind(("{2}是什么颜色的?", "请告诉我{2}的颜色。"), "{2}是{3}的。", colours)
    yield _Kind(("What sound does a {0} make?", "How does a {0} sound?"), "A {0} says {1}.", sounds)
    yield _Kind(("{2}怎么叫?", "{2}的叫声是什么?"), "{2}的叫声是“{3}”。", sounds)
    yield _Kind(
        ("What is the opposite of {0}?", "Give me the opposite of {0}."), "The opposite of {0} is {1}.", opposites
    )
    yield _Kind(("“{0}”的反义词是什么?", "请说出“{0}”的反义词。"), "“{0}”的反义词是“{1}”。", opposites_zh)
    yield _Kind(("What day comes after {0}?", "Which day follows {0}?"), "{1} comes after {0}.", days)
    yield _Kind(("What day comes before {1}?", "Which day precedes {1}?"), "{0} comes before {1}.", days)
    yield _Kind(("{0}的后一天是星期几?", "{0}之后是星期几?"), "{0}的后一天是{1}。", days_zh)
    yield _Kind(("{1}的前一天是星期几?", "{1}之前是星期几?"), "{1}的前一天是{0}。", days_zh)
    yield _Kind(("What month comes after {0}?", "Which month follows {0}?"), "{1} comes after {0}.", months)
    yield _Kind(("{0}的下一个月是几月?", "{0}之后是几月?"), "{0}的下一个月是{1}。", months_zh)


def _table(text: str) -> list[tuple[str, ...]]:
    """Split a table: rows end at `|` or a line's end, cells at a space; `-` inside a name stands for a space."""
    lines = text.strip().replace("\n", "|").split("|")
    return [tuple(_cell(cell) for cell in line.split()) for line in lines]


def _cell(text: str) -> str:
    return text if text.count("-") > 1 else text.replace("-", " ")


def _both_ways(pairs: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [pair for one, other in pairs for pair in ((one, other), (other, one))]


def _following(names: str) -> list[tuple[str, ...]]:
    """Return each name with the one after it; the last is followed by the first."""
    listed = names.split()
    return list(zip(listed, listed[1:] + listed[:1], strict=True))


register_dataset(
    "tiny-text",
    get_function=tiny_text,
    languages=("en", "zh"),
    tags=("pretraining",),
    rows=292,
    source=SOURCE,
)
