//! The fixed prompts of the coherence test: openings that any model of English can go on from,
//! about nothing in particular, so that a base model needs no instructions and no chat template.

/// Ten openings. Their number is the denominator of "7/10 prompts coherent".
pub const PROMPTS: [&str; 10] = [
    "The most important thing about the new law is that",
    "For many years the people of this country have",
    "It was a great day for the city when",
    "In the winter of that year, the men who worked on the road",
    "The first question that we have to answer is",
    "Our children will one day ask us",
    "There are three reasons for this. The first is that",
    "After the war, the government decided to",
    "A good school should give every student",
    "When I look back at the past year, I",
];
