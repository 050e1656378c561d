"""Records of benchmarks, a few of each, with the fields of their own datasets."""

import json

RECORDS = {
    "sciq": [
        {
            "question": f"What is {n} plus {n}?",
            "support": "Sums are numbers.",
            "correct_answer": f"{2 * n}",
            "distractor1": f"{2 * n + 1} or so",
            "distractor2": "none",
            "distractor3": "much",
        }
        for n in range(7)
    ],
    "lambada_openai": [{"text": f"the {n} little pigs went to the little house of the {n}"} for n in range(5)],
    "piqa": [{"goal": "Boil water.", "sol1": "Heat it.", "sol2": "Read to it.", "label": n % 2} for n in range(4)],
    "winogrande": [
        {"sentence": "The cup did not fit the bag as the _ was big.", "option1": "cup", "option2": "bag", "answer": "1"}
    ],
    "logiqa": [{"context": "All men are.", "question": "Is he?", "options": list("wxyz"), "label": "b"}],
    "arc_easy": [
        {"question": "Why?", "choices": {"text": ["a thing", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "How?", "choices": {"text": ["1", "2", "3"], "label": ["1", "2", "3"]}, "answerKey": "3"},
    ],
    "hellaswag": [
        {"activity_label": "Run", "ctx_a": "A man.", "ctx_b": "he", "endings": ["runs.", "is"], "label": "0"}
    ],
    "boolq": [{"passage": "Sums are numbers.", "question": f"is {n} one", "label": n % 2} for n in range(3)],
    "openbookqa": [
        {
            "question_stem": f"{n} and",
            "choices": {"text": list("wxyz"), "label": list("ABCD")},
            "answerKey": "ABCD"[n % 4],
        }
        for n in range(3)
    ],
    "truthfulqa_mc1": [{"question": "Is it so?", "mc1_targets": {"choices": ["It is.", "No."], "labels": [1, 0]}}],
    "truthfulqa_mc2": [
        {"question": "Is it?", "mc2_targets": {"choices": ["Yes.", "It is.", "No."], "labels": [1, 1, 0]}}
    ],
    "gsm8k": [{"question": "What is 1 plus 1?", "answer": "It is so. #### 2"}],
}
PAGES = " \n = One = \n \n A first page . \n = = Part = = \n \n More of it . \n = Two = \n \n The second . \n"


def write_records(folder, *names):
    for name in names:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS[name]))
    return folder
