"""LongBench (arXiv 2308.14508; GitHub THUDM/LongBench, folder ``LongBench``): its files, its prompts, its scores.

Knows the data format of version 1 and what its ``eval.py`` computes for each of the 21 data sets; does not know how they are asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import metrics
from .base import Benchmark, Item, Metric, Row, around_context, best, jsonl

FIRST_LINE_ONLY = frozenset({"trec", "triviaqa", "samsum", "lsht"})
"""Data sets of which only the first line of an answer is judged: after it, models go on with the next example."""

_PASSAGES = (
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\nThe following "
    "are given passages.\n{context}\n\nAnswer the question based on the given passages. Only give me the answer and do not output "
    "any other words.\n\nQuestion: {input}\nAnswer:"
)


@dataclass(frozen=True, slots=True)
class _Set:
    """One data set: its metric, the tokens of its longest answer and its prompt, spelt as published in ``config/*.json``."""

    metric: str
    max_new_tokens: int
    prompt: str


_SETS = {
    "narrativeqa": _Set(
        "f1",
        128,
        "You are given a story, which can be either a novel or a movie script, and a question. Answer the question asconcisely as you "
        "can, using a single phrase if possible. Do not provide any explanation.\n\nStory: {context}\n\nNow, answer the question based "
        "on the story asconcisely as you can, using a single phrase if possible. Do not provide any explanation.\n\nQuestion: {input}"
        "\n\nAnswer:",
    ),
    "qasper": _Set(
        "f1",
        128,
        "You are given a scientific article and a question. Answer the question as concisely as you can, using a single phrase or "
        'sentence if possible. If the question cannot be answered based on the information in the article, write "unanswerable". If '
        'the question is a yes/no question, answer "yes", "no", or "unanswerable". Do not provide any explanation.\n\nArticle: '
        "{context}\n\n Answer the question based on the above article as concisely as you can, using a single phrase or sentence if "
        'possible. If the question cannot be answered based on the information in the article, write "unanswerable". If the question '
        'is a yes/no question, answer "yes", "no", or "unanswerable". Do not provide any explanation.\n\nQuestion: {input}\n\nAnswer:',
    ),
    "multifieldqa_en": _Set(
        "f1",
        64,
        "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following question based on the above text, only "
        "give me the answer and do not output any other words.\n\nQuestion: {input}\nAnswer:",
    ),
    "multifieldqa_zh": _Set(
        "chinese_word_f1",
        64,
        "阅读以下文字并用中文简短回答：\n\n{context}\n\n现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何其他字词。\n\n"
        "问题：{input}\n回答：",
    ),
    "hotpotqa": _Set("f1", 32, _PASSAGES),
    "2wikimqa": _Set("f1", 32, _PASSAGES),
    "musique": _Set("f1", 32, _PASSAGES),
    "dureader": _Set(
        "chinese_rouge_l",
        128,
        "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n请基于上述文章回答下面的问题。\n\n问题：{input}\n回答：",
    ),
    "gov_report": _Set(
        "rouge_l",
        512,
        "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n{context}\n\nNow, write a "
        "one-page summary of the report.\n\nSummary:",
    ),
    "qmsum": _Set(
        "rouge_l",
        512,
        "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one or more "
        "sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on the above meeting transcript in one or more "
        "sentences.\n\nQuery: {input}\nAnswer:",
    ),
    "multi_news": _Set(
        "rouge_l",
        512,
        "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\nNow, write a one-page "
        "summary of all the news.\n\nSummary:",
    ),
    "vcsum": _Set(
        "chinese_rouge_l",
        512,
        "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n{context}\n\n会议总结：",
    ),
    "trec": _Set(
        "class_share",
        64,
        "Please determine the type of the question below. Here are some examples of questions.\n\n{context}\n{input}",
    ),
    "triviaqa": _Set(
        "f1",
        32,
        "Answer the question based on the given passage. Only give me the answer and do not output any other words. The following are "
        "some examples.\n\n{context}\n\n{input}",
    ),
    "samsum": _Set(
        "rouge_l",
        128,
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n{context}\n\n{input}",
    ),
    "lsht": _Set("class_share", 64, "请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{input}"),
    "passage_count": _Set(
        "number_share",
        32,
        "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please carefully read these "
        "paragraphs and determine how many unique paragraphs there are after removing duplicates. In other words, how many "
        "non-repeating paragraphs are there in total?\n\n{context}\n\nPlease enter the final count of unique paragraphs after removing "
        "duplicates. The output format should only contain the number, such as 1, 2, 3, and so on.\n\nThe final answer is: ",
    ),
    "passage_retrieval_en": _Set(
        "passage_share",
        32,
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the abstract is from.\n\n"
        "{context}\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the number of the paragraph that the abstract is from. "
        'The answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: ',
    ),
    "passage_retrieval_zh": _Set(
        "passage_share",
        32,
        "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}\n\n下面是一个摘要\n\n{input}\n\n"
        '请输入摘要所属段落的编号。答案格式必须是"段落1"，"段落2"等格式\n\n答案是：',
    ),
    "lcc": _Set("next_line", 64, "Please complete the code given below. \n{context}Next line of code:\n"),
    "repobench-p": _Set("next_line", 64, "Please complete the code given below. \n{context}Next line of code:\n"),
}


def read(path: Path) -> Iterator[Item]:
    """The questions of one jsonl file of LongBench or LongBench-E.

    Raises:
        ConfigError: the file is in another format; names file, line and key.
    """
    for row in jsonl(path, "LongBench"):
        yield _item(row, f"{path.stem}/{row.number}")


def _item(row: Row, name: str) -> Item:
    dataset = row.text("dataset")
    dataset = dataset if dataset in _SETS else dataset.removesuffix("_e")
    if dataset not in _SETS:
        raise row.wrong(f"data set {dataset!r} is unknown; known are {', '.join(_SETS)}")
    kind, context, asked = _SETS[dataset], row.text("context"), row.text("input")
    if dataset == "repobench-p":
        context += asked  # the file's own code before the line to write: part of the context, though it stands in ``input``
    before, after = around_context(kind.prompt, input=asked)
    classes = row.texts("all_classes") if kind.metric == "class_share" else ()
    return Item(
        id=name,
        dataset=dataset,
        pieces=(before + context,),
        question=after,
        answers=row.texts("answers"),
        metric=kind.metric,
        max_new_tokens=kind.max_new_tokens,
        stop=("\n",) if dataset == "samsum" else (),
        meta={"classes": classes, "length": row.data.get("length"), "language": row.data.get("language")},
    )


def _judged(metric: Metric) -> Metric:
    """A metric, after the rule of ``eval.py`` for data sets of which the first line counts."""

    def judge(said: str, item: Item) -> tuple[float, ...]:
        return metric(said.lstrip("\n").split("\n")[0] if item.dataset in FIRST_LINE_ONLY else said, item)

    return judge


def _class_share(said: str, item: Item) -> tuple[float, ...]:
    return (max((metrics.class_share(said, answer, item.meta["classes"]) for answer in item.answers), default=0.0),)


def passage_share(said: str, answer: str) -> float:
    """Share of the numbers in an answer that are the passage's; ``retrieval_score`` and ``retrieval_zh_score``."""
    found = re.search(r"(?:Paragraph |段落)(\d+)", answer)
    return metrics.number_share(said, found[1]) if found else 0.0


def next_line(said: str, answer: str) -> float:
    """Similarity of the first line that is no comment and no fence; ``code_sim_score``."""
    lines = said.lstrip("\n").split("\n")
    return metrics.similarity(next((line for line in lines if not re.search(r"`|#|//", line)), ""), answer)


BENCHMARK = Benchmark(
    read,
    {
        name: _judged(metric)
        for name, metric in {
            "f1": best(metrics.f1),
            "chinese_word_f1": best(metrics.chinese_word_f1),
            "rouge_l": best(metrics.rouge_l_of_sets),
            "chinese_rouge_l": best(metrics.chinese_rouge_l),
            "class_share": _class_share,
            "number_share": best(metrics.number_share),
            "passage_share": best(passage_share),
            "next_line": best(next_line),
        }.items()
    },
)
